"""The one attention of text over images: all forms of hyper attention call it.

Scores exist for `images_per_chunk` images at a time, forward and backward, so that memory does not
grow with T x (all image tokens). The backward pass is written out: it keeps the output and the
log-sum-exp, and recomputes the scores of each chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from owl3_jax.models.attention import MASKED, attend, attention_scores, merge

ImageKeys = Float[Array, "B I L K D"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def image_attention(
    q: Float[Array, "B T H D"],
    k: ImageKeys,
    v: ImageKeys,
    visible: Bool[Array, "B T I"],
    images_per_chunk: int,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B T H"]]:
    """Attention of rotated text queries over rotated image keys (paper, section on hyper attention).

    Returns output (zero where no image is seen) and log-sum-exp, in float32, like `attend`.
    """
    B, T, H, D = q.shape
    images = k.shape[1]
    if images == 0:
        return jnp.zeros((B, T, H, D), jnp.float32), jnp.full((B, T, H), MASKED, jnp.float32)
    if images <= images_per_chunk:
        return _attend_chunk(q, k, v, visible)
    k, v, visible = (_pad_images(x, axis, images_per_chunk) for x, axis in ((k, 1), (v, 1), (visible, 2)))

    def step(merged, chunk):
        part = _attend_chunk(q, *_slice_chunk(chunk, images_per_chunk, k, v, visible))
        return merge(*merged, *part), None

    first = _attend_chunk(q, *_slice_chunk(0, images_per_chunk, k, v, visible))
    merged, _ = jax.lax.scan(step, first, jnp.arange(1, k.shape[1] // images_per_chunk))
    return merged


def _forward(q, k, v, visible, images_per_chunk):
    out, lse = image_attention(q, k, v, visible, images_per_chunk)
    return (out, lse), (q, k, v, visible, out, lse)


def _backward(images_per_chunk, residuals, cotangents):
    q, k, v, visible, out, lse = residuals
    d_out, d_lse = cotangents
    images = k.shape[1]
    if images == 0:
        return jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v), None
    # The score of key c gets weight_c * (d_out . v_c - d_out . out + d_lse).
    shift = d_lse - jnp.sum(d_out * out, axis=-1)  # [B, T, H]
    per_chunk = min(images, images_per_chunk)
    k_padded, v_padded, visible = (_pad_images(x, axis, per_chunk) for x, axis in ((k, 1), (v, 1), (visible, 2)))

    def step(d_q, chunk):
        part = _slice_chunk(chunk, per_chunk, k_padded, v_padded, visible)
        d_q_part, d_k, d_v = _backward_chunk(q, *part, lse, shift, d_out)
        return d_q + d_q_part, (d_k, d_v)

    chunks = jnp.arange(k_padded.shape[1] // per_chunk)
    d_q, d_kv = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), chunks)
    d_k, d_v = (_join_chunks(x, images) for x in d_kv)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


image_attention.defvjp(_forward, _backward)


def _attend_chunk(q, k, v, visible):
    return attend(q, _flat(k), _flat(v), jnp.repeat(visible, k.shape[2], axis=-1))


def _backward_chunk(q, k, v, visible, lse, shift, d_out):
    """Gradients of one chunk: d_q [B, T, H, D], d_k and d_v [B, I, L, K, D], in float32."""
    B, T, H, D = q.shape
    K = k.shape[3]
    grouped = lambda x: jnp.moveaxis(x.reshape(B, T, K, H // K), 1, 3)[..., None]  # [B, T, H] -> [B, K, G, T, 1]
    seen = jnp.repeat(visible, k.shape[2], axis=-1)[:, None, None]  # [B, 1, 1, T, I*L]
    flat_k, flat_v = _flat(k), _flat(v)
    weights = jnp.exp(jnp.where(seen, attention_scores(q, flat_k) - grouped(lse), MASKED))  # [B, K, G, T, I*L]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_out = d_out.reshape(B, T, K, H // K, D).astype(v.dtype)
    d_v = einsum("bkgtc,btkgd->bckd", weights.astype(v.dtype), d_out)
    d_weights = einsum("btkgd,bckd->bkgtc", d_out, flat_v)
    d_scores = (weights * (d_weights + grouped(shift)) * D**-0.5).astype(q.dtype)
    d_q = einsum("bkgtc,bckd->btkgd", d_scores, flat_k).reshape(q.shape)
    d_k = einsum("bkgtc,btkgd->bckd", d_scores, q.reshape(B, T, K, H // K, D))
    return d_q, d_k.reshape(k.shape), d_v.reshape(v.shape)


def _flat(x):
    B, I, L, K, D = x.shape
    return x.reshape(B, I * L, K, D)


def _pad_images(x, axis, multiple):
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)


def _slice_chunk(chunk, size, k, v, visible):
    part = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, chunk * size, size, axis)
    return part(k, 1), part(v, 1), part(visible, 2)


def _join_chunks(x, images):
    """[chunks, B, images of a chunk, L, K, D] -> [B, images, L, K, D]"""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :images]
