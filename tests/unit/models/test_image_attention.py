import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.models.attention import attend
from owl3_jax.models.image_attention import image_attention

B, T, I, L, H, K, D, M = 2, 7, 5, 3, 6, 3, 11, 3
LAYER = 1


def random_inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    visible = rng.random((B, T, I)) < 0.5
    visible[0, :2] = False  # text before the first image
    visible[1] = False  # a text-only row
    return draw(B, H, T, D), draw(M, B, K, I, L, D), draw(M, B, K, I, L, D), jnp.asarray(visible)


def chunked(q, k, v, visible, images_per_chunk):
    return image_attention(q, k, v, jnp.int32(LAYER), visible, images_per_chunk)


def dense(q, k, v, visible):
    flat = lambda x: x[LAYER].reshape(B, K, I * L, D)
    return attend(q, flat(k), flat(v), jnp.repeat(visible, L, axis=-1))


@pytest.mark.parametrize("images_per_chunk", [1, 2, 3, 5, 13])
def test_chunks_equal_one_dense_attention(images_per_chunk):
    inputs = random_inputs()
    out, lse = chunked(*inputs, images_per_chunk)
    expected_out, expected_lse = dense(*inputs)
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


@pytest.mark.parametrize("images_per_chunk", [1, 2, 5])
def test_gradients_of_output_and_lse_equal_those_of_dense_attention(images_per_chunk):
    q, k, v, visible = random_inputs(1)
    sees = visible.any(axis=-1)[:, None]
    weights = jax.random.normal(jax.random.key(0), q.shape), jax.random.normal(jax.random.key(1), q.shape[:3])

    def loss(attention):
        def value(q, k, v):
            out, lse = attention(q, k, v)
            return jnp.sum(out * weights[0]) + jnp.sum(jnp.where(sees, lse, 0) * weights[1])

        return jax.grad(value, argnums=(0, 1, 2))(q, k, v)

    ours = loss(lambda *x: chunked(*x, visible, images_per_chunk))
    for name, a, b in zip("qkv", ours, loss(lambda *x: dense(*x, visible)), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, err_msg=name)
        assert float(jnp.abs(b).max()) > 0.1


def test_no_images_at_all():
    q = random_inputs()[0]
    none = jnp.zeros((M, B, K, 0, L, D))
    value = lambda q: chunked(q, none, none, jnp.zeros((B, T, 0), bool), 2)
    assert np.all(np.asarray(value(q)[0]) == 0)
    assert np.all(np.asarray(value(q)[1]) < -1e29)
    assert np.all(np.asarray(jax.grad(lambda q: value(q)[0].sum())(q)) == 0)


def test_memory_does_not_grow_with_all_image_tokens():
    """Forward and backward hold scores of one chunk only: no array of T x I*L elements or more per head."""
    images, text = 64, 128
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    q, kv = shape(1, 2, text, 4), shape(1, 1, 1, images, 8, 4)
    loss = lambda q, k, v, seen: sum(x.sum() for x in image_attention(q, k, v, jnp.int32(0), seen, 4))
    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, kv, kv, jax.ShapeDtypeStruct((1, text, images), bool)).compile()
    )
    scores_of_all = 2 * text * images * 8 * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores_of_all


def test_bfloat16_stays_close():
    q, k, v, visible = random_inputs(2)
    exact, _ = chunked(q, k, v, visible, 2)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out, lse = chunked(*half, visible, 2)
    assert out.dtype == lse.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, atol=0.03)  # measured 0.013; bfloat16 has 8 bits of mantissa
