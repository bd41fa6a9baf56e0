"""Attention over one block of keys, what may see what, and merging two blocks exactly.

Softmax attention over a part of the keys that also returns the log-sum-exp of its scores can be
merged with another part without error. Chunks of images, text and images in the joint form, and keys
spread over devices are the same operation: `merge`.

Heads stand before positions, so that no score-sized array is ever transposed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Stands for minus infinity in float32 scores: sums of it stay finite, so no gradient turns into NaN.
MASKED = -1e30


def text_visibility(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    key_positions: Int[Array, "B C"],
    key_segment_ids: Int[Array, "B C"],
) -> Bool[Array, "B T C"]:
    """Text sees the text of its own segment up to and including itself; padding (segment 0) sees nothing.

    Two packed samples of two tokens and one padding token, rows see columns:

        1 0 0 0 0
        1 1 0 0 0
        0 0 1 0 0
        0 0 1 1 0
        0 0 0 0 0
    """
    same = (segment_ids[:, :, None] == key_segment_ids[:, None, :]) & (segment_ids[:, :, None] != 0)
    return same & (key_positions[:, None, :] <= positions[:, :, None])


def image_visibility(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    image_positions: Int[Array, "B I"],
    image_segment_ids: Int[Array, "B I"],
    *,
    inclusive: bool,
) -> Bool[Array, "B T I"]:
    """Text sees the images of its own segment whose placeholder starts before it (`inclusive`: at it or before).

    Five tokens with images at positions 1 and 3, rows see columns:

        strict   0 0   inclusive   0 0
                 0 0               1 0
                 1 0               1 0
                 1 0               1 1
                 1 1               1 1
    """
    same = (segment_ids[:, :, None] == image_segment_ids[:, None, :]) & (segment_ids[:, :, None] != 0)
    distance = positions[:, :, None] - image_positions[:, None, :]
    return same & (distance >= 0 if inclusive else distance > 0)


def attention_scores(q: Float[Array, "B H T D"], k: Float[Array, "B K C D"]) -> Float[Array, "B K G T C"]:
    """Scaled dot products in float32; query head h belongs to key head h // G."""
    grouped = group(q, k.shape[1])
    # The G * T queries of a key head are the rows of one matrix product.
    scores = jnp.einsum("bkrd,bkcd->bkrc", _rows(grouped), k, preferred_element_type=jnp.float32)
    return scores.reshape(*grouped.shape[:4], k.shape[2]) * q.shape[3] ** -0.5


def group(x: Shaped[Array, "B H *rest"], kv_heads: int) -> Shaped[Array, "B K G *rest"]:
    """Query heads by the key head that they share."""
    B, H, *rest = x.shape
    return x.reshape(B, kv_heads, H // kv_heads, *rest)


def _rows(x: Shaped[Array, "B K G T X"]) -> Shaped[Array, "B K GT X"]:
    B, K, G, T, X = x.shape
    return x.reshape(B, K, G * T, X)


def attend(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Bool[Array, "B T C"] | None = None,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Grouped-query attention; scores and softmax in float32.

    Returns the output in float32 (zero where a position sees nothing) and the log-sum-exp of the
    scores (about -1e30 there).
    """
    scores = attention_scores(q, k)
    if visible is not None:
        scores = jnp.where(visible[:, None, None], scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1))  # [B, K, G, T]
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(axis=-1)
    out = jnp.einsum("bkrc,bkcd->bkrd", _rows(weights.astype(v.dtype)), v, preferred_element_type=jnp.float32)
    out = out.reshape(q.shape) / total.reshape(q.shape[:3])[..., None]
    if visible is not None:
        out = jnp.where(visible.any(axis=-1)[:, None, :, None], out, 0.0)
    return out, (top + jnp.log(total)).reshape(q.shape[:3])


def merge(
    out: Float[Array, "B H T D"],
    lse: Float[Array, "B H T"],
    other: Float[Array, "B H T D"],
    other_lse: Float[Array, "B H T"],
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Attention over the union of two disjoint sets of keys, from the attention over each."""
    share = jax.nn.sigmoid(other_lse - lse)[..., None]
    return out + share * (other - out), jnp.logaddexp(lse, other_lse)
