"""int8 vectors: how near they are, and that attention reads them chunk by chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import IMAGES, Plan
from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.quantized import Quantized, dequantize, quantize, quantize_like, vector_bytes, zero_vectors
from tests.tiny import COMPUTE

INT8 = dataclasses.replace(COMPUTE, cache_dtype="int8")
B, T, I, L, H, K, D, M = 2, 7, 5, 3, 6, 3, 11, 3


def draw(seed, *shape, size=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * size, jnp.float32)


@given(st.integers(0, 999), st.floats(1e-20, 1e20))
@settings(deadline=None, max_examples=25)
def test_no_number_is_off_by_more_than_half_a_scale(seed, size):
    x = draw(seed, 5, 3, 7, size=size)
    quantized = quantize_like(x, zero_vectors(x.shape, INT8))
    scale = np.asarray(quantized.scale, np.float64)[..., None]
    np.testing.assert_allclose(scale * 127, np.abs(np.float64(x)).max(axis=-1, keepdims=True), rtol=1e-6)
    off = np.abs(np.asarray(quantized.values, np.float64) * scale - np.float64(x))
    assert np.all(off <= 0.5 * scale * (1 + 127 * 2**-22))  # x / scale is rounded to float32 before it is rounded to int8
    np.testing.assert_allclose(dequantize(quantized, jnp.float32), quantized.values * scale, rtol=1e-6)


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_a_scale_covers_the_dims_that_it_lacks(dims):
    x = draw(0, 5, 3, 7)
    values, scale = quantize(x, dims)
    assert scale.shape == tuple(size for dim, size in enumerate(x.shape) if dim not in dims)
    assert np.all(np.abs(np.asarray(values)).max(axis=dims) == 127)
    np.testing.assert_allclose(values * jnp.expand_dims(scale, dims), x, atol=float(scale.max()) * 0.501)


def test_zeros_stay_zeros():
    x = draw(0, 5, 7).at[2].set(0.0)
    quantized = quantize_like(x, zero_vectors(x.shape, INT8))
    assert float(quantized.scale[2]) == 0
    np.testing.assert_array_equal(dequantize(quantized, jnp.float32)[2], 0)
    np.testing.assert_array_equal(dequantize(zero_vectors(x.shape, INT8), jnp.float32), np.zeros(x.shape))


def test_without_int8_nothing_is_touched():
    x = draw(0, 5, 7)
    np.testing.assert_array_equal(dequantize(x, jnp.float32), x)
    assert dequantize(x, jnp.bfloat16).dtype == jnp.bfloat16  # pools on a CPU are wider than what reads them
    assert quantize_like(x, x) is x
    assert quantize_like(x, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("compute", [COMPUTE, dataclasses.replace(COMPUTE, dtype="bfloat16"), INT8])
def test_bytes_are_those_of_the_arrays(compute):
    arrays = jax.tree.leaves(zero_vectors((5, 3, 64), compute))
    assert sum(x.nbytes for x in arrays) == 15 * vector_bytes(64, compute)


@pytest.mark.parametrize("images_per_chunk", [1, 2, 5])
def test_image_attention_over_int8_is_that_over_the_numbers_it_stands_for(images_per_chunk):
    keys, values = (quantize_like(draw(seed, M, B, K, I, L, D), zero_vectors((0,), INT8)) for seed in (1, 2))
    limits, segment_ids = (
        jnp.asarray(np.random.default_rng(0).integers(0, I + 1, (B, T)), jnp.int32),
        jnp.ones((B, T), jnp.int32),
    )
    visible = Visibility(limits, segment_ids, jnp.ones((B, I), jnp.int32))
    plan = Plan(IMAGES, COMPUTE.attention, images_per_chunk)
    over = lambda *block: attend(draw(0, B, H, T, D), [block], visible, plan, jnp.int32(1))
    out, lse = over(keys, values)
    expected_out, expected_lse = over(*(dequantize(x, jnp.float32) for x in (keys, values)))
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def test_int8_keys_never_become_floats_as_a_whole():
    images, tokens, size = 64, 8, 64
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    keys = Quantized(shape(1, 1, 1, images, tokens, size, dtype=jnp.int8), shape(1, 1, 1, images, tokens))
    ids = shape(1, 1, dtype=jnp.int32)
    q, visible = shape(1, 1, 1, size), Visibility(ids, ids, shape(1, images, dtype=jnp.int32))
    plan = Plan(IMAGES, COMPUTE.attention, 4)
    attention = jax.jit(lambda q, k, v, seen: attend(q, [(k, v)], seen, plan, jnp.int32(0)))
    temporary = attention.lower(q, keys, keys, visible).compile().memory_analysis().temp_size_in_bytes
    assert temporary < images * tokens * size * 4  # bytes of the keys alone in float32
