"""Attention over one block of keys in plain XLA, forward and backward, with scores and softmax in float32.

Heads come before positions, so that no score-sized array is ever transposed.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from owl3_jax.attention.inputs import BlockInputs, Gradients, OutputGradient
from owl3_jax.attention.parts import MASKED, Part

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(inputs: BlockInputs) -> Part:
    """Grouped-query attention, in float32."""
    inputs = inputs.without_padding()
    q, v = inputs.q, inputs.v
    scores = _scores(inputs)
    top = scores.max(axis=-1)  # [B, K, GT]
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    out = _einsum("bkrc,bkcd->bkrd", weights.astype(v.dtype), v) / total[..., None]
    if inputs.visible is not None:
        out = jnp.where((top > MASKED)[..., None], out, 0.0)
    return Part(out.reshape(q.shape), (top + jnp.log(total)).reshape(q.shape[:3]))


def gradients(inputs: BlockInputs, given: OutputGradient) -> Gradients:
    """Gradients of q (float32), k and v."""
    keys, inputs = inputs.k.shape[2], inputs.without_padding()
    q, k, v = inputs.q, inputs.k, inputs.v
    rows = functools.partial(_rows, kv_heads=k.shape[1])
    lse, shift, d_out = (rows(x) for x in (given.lse[..., None], given.shift[..., None], given.d_out.astype(v.dtype)))
    weights = jnp.exp(_scores(inputs) - jnp.maximum(lse, MASKED / 2))  # [B, K, GT, C]; 0 where nothing is seen
    d_v = _einsum("bkrc,bkrd->bkcd", weights.astype(v.dtype), d_out)
    d_weights = _einsum("bkrd,bkcd->bkrc", d_out, v)
    scale = q.shape[3] ** -0.5
    d_scores = (weights * (d_weights + shift) * scale).astype(q.dtype)
    d_q = _einsum("bkrc,bkcd->bkrd", d_scores, k)
    d_k = _einsum("bkrc,bkrd->bkcd", d_scores, rows(q))
    return Gradients(d_q.reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype)).with_padding(keys)


def _scores(inputs: BlockInputs) -> Float[Array, "B K GT C"]:
    """Scaled dot products in float32, masked. The G * T queries of a key head are the rows of one matrix product."""
    q, k, visible = inputs.q, inputs.k, inputs.visible
    scale = q.shape[3] ** -0.5
    if q.dtype == jnp.float32:  # scaled queries save a pass over the scores, and half precision would round them
        scores = _einsum("bkrd,bkcd->bkrc", _rows(q * scale, k.shape[1]), k)
    else:
        scores = _einsum("bkrd,bkcd->bkrc", _rows(q, k.shape[1]), k) * scale
    if visible is None:
        return scores
    B, _, rows, C = scores.shape
    T = q.shape[2]
    seen = jnp.broadcast_to(visible.dense(C, inputs.real_tokens)[:, None], (B, rows // T, T, C)).reshape(B, 1, rows, C)
    return jnp.where(seen, scores, MASKED)


def _rows(x: Shaped[Array, "B H T X"], kv_heads: int) -> Shaped[Array, "B K GT X"]:
    """The queries of each key head; query head h belongs to key head h // G."""
    B, H, T, X = x.shape
    return x.reshape(B, kv_heads, H // kv_heads * T, X)
