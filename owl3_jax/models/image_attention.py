"""The one attention of text over images: all forms of hyper attention call it.

Scores exist for `images_per_chunk` images at a time, forward and backward, so that memory does not
grow with T x (all image tokens). The backward pass is written out: it keeps the output and the
log-sum-exp, and recomputes the scores of each chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from owl3_jax.models.attention import MASKED, attend, attention_scores, group, merge

ImageKeys = Float[Array, "B K I L D"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def image_attention(
    q: Float[Array, "B H T D"],
    k: ImageKeys,
    v: ImageKeys,
    visible: Bool[Array, "B T I"],
    images_per_chunk: int,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Attention of rotated text queries over rotated image keys (paper, section on hyper attention).

    Returns output (zero where no image is seen) and log-sum-exp, in float32, like `attend`.
    """
    images = k.shape[2]
    if images == 0:
        return jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
    if images <= images_per_chunk:
        return _attend_chunk(q, k, v, visible)
    k, v, visible = (_pad_images(x, images_per_chunk) for x in (k, v, visible))

    def step(merged, chunk):
        part = _attend_chunk(q, *_slice_chunk(chunk, images_per_chunk, k, v, visible))
        return merge(*merged, *part), None

    first = _attend_chunk(q, *_slice_chunk(0, images_per_chunk, k, v, visible))
    merged, _ = jax.lax.scan(step, first, jnp.arange(1, k.shape[2] // images_per_chunk))
    return merged


def _forward(q, k, v, visible, images_per_chunk):
    out, lse = image_attention(q, k, v, visible, images_per_chunk)
    return (out, lse), (q, k, v, visible, out, lse)


def _backward(images_per_chunk, residuals, cotangents):
    q, k, v, visible, out, lse = residuals
    d_out, d_lse = cotangents
    images = k.shape[2]
    if images == 0:
        return jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v), None
    # The score of key c gets weight_c * (d_out . v_c - d_out . out + d_lse).
    shift = d_lse - jnp.sum(d_out * out, axis=-1)  # [B, H, T]
    per_chunk = min(images, images_per_chunk)
    k_padded, v_padded, visible = (_pad_images(x, per_chunk) for x in (k, v, visible))

    def step(d_q, chunk):
        k_part, v_part, seen = _slice_chunk(chunk, per_chunk, k_padded, v_padded, visible)
        d_q_part, d_k, d_v = _backward_chunk(q, k_part, v_part, seen, lse, shift, d_out)
        return d_q + d_q_part, (d_k, d_v)

    chunks = jnp.arange(k_padded.shape[2] // per_chunk)
    d_q, d_kv = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), chunks)
    d_k, d_v = (_join_chunks(x, images) for x in d_kv)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


image_attention.defvjp(_forward, _backward)


def _attend_chunk(q, k, v, visible):
    return attend(q, _flat(k), _flat(v), jnp.repeat(visible, k.shape[3], axis=-1))


def _backward_chunk(q, k, v, visible, lse, shift, d_out):
    """Gradients of one chunk: d_q [B, H, T, D], d_k and d_v [B, K, I, L, D], in float32."""
    K, D = k.shape[1], q.shape[3]
    lse, shift, d_out = (group(x, K) for x in (lse[..., None], shift[..., None], d_out.astype(v.dtype)))  # [B, K, G, T, .]
    seen = jnp.repeat(visible, k.shape[3], axis=-1)[:, None, None]  # [B, 1, 1, T, I*L]
    flat_k, flat_v = _flat(k), _flat(v)
    weights = jnp.exp(jnp.where(seen, attention_scores(q, flat_k) - lse, MASKED))  # [B, K, G, T, I*L]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_v = einsum("bkgtc,bkgtd->bkcd", weights.astype(v.dtype), d_out)
    d_weights = einsum("bkgtd,bkcd->bkgtc", d_out, flat_v)
    d_scores = (weights * (d_weights + shift) * D**-0.5).astype(q.dtype)
    d_q = einsum("bkgtc,bkcd->bkgtd", d_scores, flat_k)
    d_k = einsum("bkgtc,bkgtd->bkcd", d_scores, group(q, K))
    return d_q.reshape(q.shape), d_k.reshape(k.shape), d_v.reshape(v.shape)


def _flat(x):
    B, K, I, L, D = x.shape
    return x.reshape(B, K, I * L, D)


def _pad_images(x, multiple):
    """k, v [B, K, I, L, D] or visible [B, T, I]: I up to a multiple."""
    return jnp.pad(x, [(0, -size % multiple if axis == 2 else 0) for axis, size in enumerate(x.shape)])


def _slice_chunk(chunk, size, *arrays):
    return [jax.lax.dynamic_slice_in_dim(x, chunk * size, size, axis=2) for x in arrays]


def _join_chunks(x, images):
    """[chunks, B, K, images of a chunk, L, D] -> [B, K, images, L, D]"""
    _, B, K, _, L, D = x.shape
    return jnp.moveaxis(x, 0, 2).reshape(B, K, -1, L, D)[:, :, :images]
