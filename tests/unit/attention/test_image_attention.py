import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import IMAGES, TEXT, Plan, one_layer
from owl3_jax.attention.visibility import Visibility, visibility
from tests.tiny import COMPUTE

B, T, I, L, H, K, D, M = 3, 7, 5, 3, 6, 3, 11, 3
LAYER = jnp.int32(1)


def random_inputs(seed=0):
    """A packed row whose second sample stands behind two images of the first, a row that sees no image, a plain one."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 0], range(T), range(T)], jnp.int32)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0], [1] * T, [1] * T], jnp.int32)
    image_positions = jnp.array([[0, 1, 0, 1, 0], [0] * I, [0, 1, 2, 4, 5]], jnp.int32)
    image_segments = jnp.array([[1, 1, 2, 2, 0], [0] * I, [1] * I], jnp.int32)
    visible = visibility(positions, segments, image_positions, image_segments, inclusive=False)
    return draw(B, H, T, D), draw(M, B, K, I, L, D), draw(M, B, K, I, L, D), visible


def chunked(q, k, v, visible, images_per_chunk):
    return attend(q, [(k, v)], visible, Plan(IMAGES, COMPUTE.attention, images_per_chunk), LAYER)


def at_once(q, k, v, visible):
    flat = lambda x: x[LAYER].reshape(B, K, I * L, D)
    return attend(q, [one_layer(flat(k), flat(v))], visible.over_tokens(I * L), Plan(TEXT, "xla"))


@pytest.mark.parametrize("images_per_chunk", [1, 2, 3, 5, 13])
def test_chunks_equal_one_attention(images_per_chunk):
    inputs = random_inputs()
    assert inputs[3].sees.any(axis=1).tolist() == [True, False, True]
    out, lse = chunked(*inputs, images_per_chunk)
    expected_out, expected_lse = at_once(*inputs)
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def test_chunks_without_a_mask_see_all_images():
    q, keys, values, _ = random_inputs(2)
    whole = [x[LAYER].reshape(B, K, I * L, D) for x in (keys, values)]
    expected = attend(q, [one_layer(*whole)], None, Plan(TEXT, "xla"))
    for ours, theirs in zip(chunked(q, keys, values, None, 2), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("images_per_chunk", [1, 2, 5])
def test_gradients_of_output_and_lse_equal_those_of_one_attention(images_per_chunk):
    q, k, v, visible = random_inputs(1)
    weights = jax.random.normal(jax.random.key(0), q.shape), jax.random.normal(jax.random.key(1), q.shape[:3])

    def grads(attention):
        def value(q, k, v):
            out, lse = attention(q, k, v)
            return jnp.sum(out * weights[0]) + jnp.sum(jnp.where(visible.sees[:, None], lse, 0) * weights[1])

        return jax.grad(value, argnums=(0, 1, 2))(q, k, v)

    ours = grads(lambda *x: chunked(*x, visible, images_per_chunk))
    for name, a, b in zip("qkv", ours, grads(lambda *x: at_once(*x, visible)), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, err_msg=name)
        assert float(jnp.abs(b).max()) > 0.1


def test_no_images_at_all():
    q = random_inputs()[0]
    none, ids = jnp.zeros((M, B, K, 0, L, D)), jnp.zeros((B, T), jnp.int32)
    value = lambda q: chunked(q, none, none, Visibility(ids, ids, jnp.zeros((B, 0), jnp.int32)), 2)
    assert np.all(np.asarray(value(q)[0]) == 0)
    assert np.all(np.asarray(value(q)[1]) < -1e29)
    assert np.all(np.asarray(jax.grad(lambda q: value(q)[0].sum())(q)) == 0)


def test_memory_does_not_grow_with_all_image_tokens():
    """Forward and backward hold scores of one chunk only: no array of T x I*L elements or more per head."""
    images, text = 64, 128
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    q, kv, ids = shape(1, 2, text, 4), shape(1, 1, 1, images, 8, 4), shape(1, text, dtype=jnp.int32)
    visible = Visibility(ids, ids, shape(1, images, dtype=jnp.int32))
    plan = Plan(IMAGES, COMPUTE.attention, 4)
    loss = lambda q, k, v, seen: sum(x.sum() for x in attend(q, [(k, v)], seen, plan, jnp.int32(0)))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, kv, kv, visible).compile()
    scores_of_all = 2 * text * images * 8 * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores_of_all


def test_bfloat16_stays_close():
    q, k, v, visible = random_inputs(2)
    exact, _ = chunked(q, k, v, visible, 2)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out, lse = chunked(*half, visible, 2)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
