"""Attention over one block of keys in plain XLA, forward and backward, with scores and softmax in float32.

Heads stand before positions, so that no score-sized array is ever transposed.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from owl3_jax.models.visibility import Visibility

# Stands for minus infinity in float32 scores: sums of it stay finite, so no gradient turns into NaN.
MASKED = -1e30

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def forward(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Visibility | None,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Grouped-query attention: the output (zero where a position sees nothing) and the log-sum-exp of the
    scores (about -1e30 there), both in float32.

    `visible` is over keys, or over images of as many keys each; None: every position sees every key.
    """
    scores = _scores(q, k, visible)
    top = scores.max(axis=-1)  # [B, K, GT]
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    out = _einsum("bkrc,bkcd->bkrd", weights.astype(v.dtype), v) / total[..., None]
    if visible is not None:
        out = jnp.where((top > MASKED)[..., None], out, 0.0)
    return out.reshape(q.shape), (top + jnp.log(total)).reshape(q.shape[:3])


def backward(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Visibility | None,
    lse: Float[Array, "B H T"],
    shift: Float[Array, "B H T"],
    d_out: Float[Array, "B H T D"],
) -> tuple[Float[Array, "B H T D"], Float[Array, "B K C D"], Float[Array, "B K C D"]]:
    """Gradients of q (float32), k and v. `lse` may cover more keys than these.

    The score of key c gets weight_c * (d_out . v_c + shift), where shift = d_lse - d_out . out.
    """
    K = k.shape[1]
    lse, shift, d_out = (_rows(x, K) for x in (lse[..., None], shift[..., None], d_out.astype(v.dtype)))  # [B, K, GT, .]
    weights = jnp.exp(_scores(q, k, visible) - jnp.maximum(lse, MASKED / 2))  # [B, K, GT, C]; 0 where nothing is seen
    d_v = _einsum("bkrc,bkrd->bkcd", weights.astype(v.dtype), d_out)
    d_weights = _einsum("bkrd,bkcd->bkrc", d_out, v)
    scale = q.shape[3] ** -0.5
    d_scores = (weights * (d_weights + shift) * scale).astype(q.dtype)
    d_q = _einsum("bkrc,bkcd->bkrd", d_scores, k)
    d_k = _einsum("bkrc,bkrd->bkcd", d_scores, _rows(q, K))
    return d_q.reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _scores(q: Float[Array, "B H T D"], k: Float[Array, "B K C D"], visible: Visibility | None) -> Float[Array, "B K GT C"]:
    """Scaled dot products in float32, masked. The G * T queries of a key head are the rows of one matrix product."""
    scale = q.shape[3] ** -0.5
    if q.dtype == jnp.float32:  # scaled queries save a pass over the scores, and half precision would round them
        scores = _einsum("bkrd,bkcd->bkrc", _rows(q * scale, k.shape[1]), k)
    else:
        scores = _einsum("bkrd,bkcd->bkrc", _rows(q, k.shape[1]), k) * scale
    if visible is None:
        return scores
    B, _, rows, C = scores.shape
    T = q.shape[2]
    seen = jnp.broadcast_to(visible.dense(C)[:, None], (B, rows // T, T, C)).reshape(B, 1, rows, C)
    return jnp.where(seen, scores, MASKED)


def _rows(x: Shaped[Array, "B H T X"], kv_heads: int) -> Shaped[Array, "B K GT X"]:
    """The queries of each key head; query head h belongs to key head h // G."""
    B, H, T, X = x.shape
    return x.reshape(B, kv_heads, H // kv_heads * T, X)
