import dataclasses

import jax
import numpy as np
import pytest

from owl3_jax.config import MeshConfig
from owl3_jax.inference import programs
from owl3_jax.inference import runtime as runtime_module
from owl3_jax.inference.feature_cache import FeatureCache
from owl3_jax.inference.runtime import Runtime
from owl3_jax.sharding import make_mesh
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import images, runtime

VIEWS = list(images(5))


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Sizes of the batches that the vision tower takes."""
    sizes: list[int] = []
    original = Runtime.run_model

    def run_model(self, program, *arguments, **options):
        if program is programs.encode:
            sizes.append(len(arguments[0]))
        return original(self, program, *arguments, **options)

    monkeypatch.setattr(Runtime, "run_model", run_model)
    return sizes


def with_cache(max_bytes=2**20) -> Runtime:
    return dataclasses.replace(runtime(), feature_cache=FeatureCache(max_bytes))


def test_images_that_were_seen_are_not_encoded_again(encoded):
    cached = with_cache()
    expected = np.asarray(runtime().features(VIEWS[:4], 4))
    for chosen in ([0, 1], [1, 0], [2, 1], [3, 3]):
        features = cached.features([VIEWS[index] for index in chosen], 2)
        np.testing.assert_allclose(features, expected[chosen], rtol=0, atol=ENGINE_LOGITS)
    assert encoded == [4, 2, 1, 1]
    assert (cached.feature_cache.hits, len(cached.feature_cache)) == (3, 4)


def test_a_batch_is_padded_to_its_size():
    features = with_cache().features(VIEWS[:3], 4)
    assert features.shape == (4, 9, 42)
    np.testing.assert_allclose(features[:3], runtime().features(VIEWS[:3], 3), rtol=0, atol=ENGINE_LOGITS)


def test_without_a_cache_nothing_is_kept(encoded):
    without = with_cache(0)
    for _ in range(2):
        without.features(VIEWS[:2], 2)
    assert encoded == [2, 2] and len(without.feature_cache) == 0


def test_the_vision_tower_takes_a_power_of_two_or_the_full_batch():
    six = dataclasses.replace(runtime(), vision_batch_size=6)
    assert [six.encoder_batch(images) for images in range(1, 7)] == [1, 2, 4, 4, 6, 6]


def test_sizes_suit_the_mesh():
    spread = dataclasses.replace(runtime(), mesh=make_mesh(MeshConfig(data=2, context=4)))
    assert [spread.image_slots(images) for images in (0, 1, 4, 5, 9)] == [0, 4, 4, 8, 12]
    assert [spread.rows(prompts) for prompts in (1, 2, 3, 5)] == [2, 2, 4, 8]
    assert (spread.devices, runtime().devices) == (8, 1)


def test_a_step_of_image_attention_has_the_bytes_that_it_should(monkeypatch):
    monkeypatch.setitem(runtime_module._CHUNK_BYTES, jax.default_backend(), 50_000)
    sizes = lambda copies: {(T, B): runtime()._images_per_chunk(T, B, copies=copies) for T in (1, 16) for B in (1, 4)}
    # An image: 9 tokens of 14 + 14 float32s, if they are copied out of a stack or of pages, and of 3 heads x T scores.
    assert sizes(True) == {(1, 1): 44, (1, 4): 11, (16, 1): 18, (16, 4): 4}
    assert sizes(False) == {(1, 1): 462, (1, 4): 115, (16, 1): 28, (16, 4): 7}
    monkeypatch.setitem(runtime_module._CHUNK_BYTES, jax.default_backend(), 1)
    assert runtime()._images_per_chunk(256, 8, copies=True) == 1
