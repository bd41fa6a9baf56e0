"""The cache of image features against a list that does the same slowly."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.config import ConfigError
from owl3_jax.inference.feature_cache import FeatureCache, key_of

STEPS = st.lists(st.tuples(st.sampled_from(["get", "put"]), st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 7)))


@given(limit=st.integers(0, 13), steps=STEPS)
@settings(deadline=None, max_examples=100)
def test_the_least_recently_used_gives_way(limit, steps):
    cache, kept = FeatureCache(limit), []  # of (key, array), the last used at the end
    for action, key, size in steps:
        known = [pair for pair in kept if pair[0] == key]
        others = [pair for pair in kept if pair[0] != key]
        if action == "get":
            assert cache.get(key) is (known[0][1] if known else None)
            kept = others + known
            continue
        array = np.zeros(size, np.uint8)
        cache.put(key, array)
        kept = others + [(key, array)] * (size <= limit)
        while sum(array.nbytes for _, array in kept) > limit:
            kept.pop(0)
        assert len(cache) == len(kept)
        assert cache.nbytes == sum(array.nbytes for _, array in kept) <= limit


def test_hits_and_misses_are_counted():
    cache = FeatureCache(100)
    features = jnp.ones((2, 3))
    assert cache.get(b"a") is None
    cache.put(b"a", features)
    assert cache.get(b"a") is features
    assert (cache.hits, cache.misses, cache.nbytes, len(cache)) == (1, 1, 24, 1)


def test_zero_is_off_and_less_is_refused():
    cache = FeatureCache(0)
    cache.put(b"a", np.ones(1))
    assert (cache.get(b"a"), len(cache), cache.nbytes) == (None, 0, 0)
    with pytest.raises(ConfigError, match=r"max_bytes must be at least 0 \(off\), got -1"):
        FeatureCache(-1)


def test_a_key_depends_on_content_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert key_of(pixels) == key_of(pixels.copy()) == key_of(np.asfortranarray(pixels))
    changed = pixels.copy()
    changed[4, 6, 2] ^= 1
    others = [changed, pixels.reshape(7, 5, 3), pixels.view(np.int8), pixels[::-1]]
    assert len({key_of(pixels), *map(key_of, others)}) == 5


def test_a_cleared_cache_is_empty_and_takes_more():
    cache = FeatureCache(100)
    cache.put(b"a", np.zeros(10, np.float32))
    cache.clear()
    assert (len(cache), cache.nbytes, cache.get(b"a")) == (0, 0, None)
    cache.put(b"b", np.zeros(25, np.float32))
    assert len(cache) == 1 and cache.nbytes == 100


def test_what_outgrows_memory_comes_back_from_the_disk(tmp_path):
    cache = FeatureCache(3 * 400, tmp_path)
    arrays = {bytes([number]): np.full((10, 10), number, np.float32) for number in range(7)}
    arrays[b"half"] = jnp.full((10, 20), 1.5, jnp.bfloat16)
    for key, array in arrays.items():
        cache.put(key, array)
    assert cache.nbytes <= cache.max_bytes and len(list(tmp_path.iterdir())) == 5
    for key, array in arrays.items():
        found = cache.get(key)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(array))
    assert cache.misses == 0 and cache.get(b"none") is None
    cache.clear()
    assert cache.get(bytes([0])) is None
