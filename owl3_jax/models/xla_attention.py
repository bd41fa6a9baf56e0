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
    scores (about -1e30 there), both in float32. `visible` None: every position sees every key."""
    scores = _scores(q, k, visible)
    top = scores.max(axis=-1)  # [B, K, G, T]
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    out = _einsum("bkrc,bkcd->bkrd", _rows(weights.astype(v.dtype)), v)
    out = out.reshape(q.shape) / total.reshape(q.shape[:3])[..., None]
    if visible is not None:
        out = jnp.where((top > MASKED).reshape(q.shape[:3])[..., None], out, 0.0)
    return out, (top + jnp.log(total)).reshape(q.shape[:3])


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
    K, D = k.shape[1], q.shape[3]
    lse, shift, d_out = (_group(x, K) for x in (lse[..., None], shift[..., None], d_out.astype(v.dtype)))  # [B, K, G, T, .]
    weights = jnp.exp(_scores(q, k, visible) - jnp.maximum(lse, MASKED / 2))  # [B, K, G, T, C]; 0 where nothing is seen
    d_v = _einsum("bkgtc,bkgtd->bkcd", weights.astype(v.dtype), d_out)
    d_weights = _einsum("bkgtd,bkcd->bkgtc", d_out, v)
    d_scores = (weights * (d_weights + shift) * D**-0.5).astype(q.dtype)
    d_q = _einsum("bkgtc,bkcd->bkgtd", d_scores, k)
    d_k = _einsum("bkgtc,bkgtd->bkcd", d_scores, _group(q, K))
    return d_q.reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _scores(q: Float[Array, "B H T D"], k: Float[Array, "B K C D"], visible: Visibility | None) -> Float[Array, "B K G T C"]:
    """Scaled dot products in float32, masked; query head h belongs to key head h // G."""
    grouped = _group(q, k.shape[1])
    # The G * T queries of a key head are the rows of one matrix product.
    scores = _einsum("bkrd,bkcd->bkrc", _rows(grouped), k)
    scores = scores.reshape(*grouped.shape[:4], k.shape[2]) * q.shape[3] ** -0.5
    return scores if visible is None else jnp.where(visible.dense()[:, None, None], scores, MASKED)


def _group(x: Shaped[Array, "B H *rest"], kv_heads: int) -> Shaped[Array, "B K G *rest"]:
    """Query heads by the key head that they share."""
    B, H, *rest = x.shape
    return x.reshape(B, kv_heads, H // kv_heads, *rest)


def _rows(x: Shaped[Array, "B K G T X"]) -> Shaped[Array, "B K GT X"]:
    B, K, G, T, X = x.shape
    return x.reshape(B, K, G * T, X)
