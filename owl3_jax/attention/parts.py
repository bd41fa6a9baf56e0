"""Attention over some of the keys, and how such parts are merged.

Softmax attention over some of the keys that also returns the log-sum-exp of its scores can be merged with attention over
other keys without error. Chunks and blocks of images, a prompt and its answer, images and text in the joint form, and keys
spread over devices are all that same operation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Stands for minus infinity in float32 scores: sums of it stay finite, so no gradient turns into NaN.
MASKED = -1e30


class Part(NamedTuple):
    """Attention over some of the keys."""

    out: Float[Array, "B H T D"]  # zero where a position sees none of them
    lse: Float[Array, "B H T"]  # log-sum-exp of the scores, float32; about -1e30 there


def no_part(q: Float[Array, "B H T D"]) -> Part:
    """Attention over no keys, in float32: merging with it changes nothing."""
    return Part(jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32))


def merge(part: Part, other: Part) -> Part:
    """Attention over the union of two disjoint sets of keys."""
    share = jax.nn.sigmoid(other.lse - part.lse)[..., None]
    return Part(part.out + share * (other.out - part.out), jnp.logaddexp(part.lse, other.lse))


def merge_all(parts: Part) -> Part:
    """Attention over the union of J disjoint sets of keys, [B, J, H, T, D] and [B, J, H, T]."""
    top = parts.lse.max(axis=1)
    shares = jnp.exp(parts.lse - top[:, None])
    total = shares.sum(axis=1)
    out = (shares[..., None] * parts.out).sum(axis=1) / total[..., None]
    return Part(out, top + jnp.log(total))
