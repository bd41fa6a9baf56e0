"""Attention in plain XLA for CPUs: a few heads at a time, so that their scores never leave the processor's caches.

Scores of all heads at once are written to memory and read again by each pass of the softmax: 16 heads of SigLIP, whose scores
take 34 MB, take twice as long.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from owl3_jax.attention.backends import xla
from owl3_jax.attention.inputs import BlockInputs
from owl3_jax.attention.parts import Part

_CACHE_BYTES = 8 * 2**20  # of scores


def attend(inputs: BlockInputs) -> Part:
    """Grouped-query attention, in float32."""
    B, H, T, _ = inputs.q.shape
    K, C = inputs.k.shape[1:3]
    fitting = _CACHE_BYTES // (4 * H // K * T * C)
    heads = next((size for size in range(min(K, fitting), 0, -1) if K % size == 0), 1)  # of keys
    if heads == K and max(1, fitting // K) >= B:
        return xla.attend(inputs)
    # Without the barriers, products write what they compute in an order in which no head is in one piece.
    q, k, v = jax.lax.optimization_barrier((inputs.q, inputs.k, inputs.v))

    def step(part: tuple[Array, Array, Array, Array]) -> Part:
        q, k, v, row = part
        visible = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), inputs.visible)
        return xla.attend(dataclasses.replace(inputs, q=q, k=k, v=v, visible=visible))

    parts = jax.lax.map(step, (*(_split(x, K // heads) for x in (q, k, v)), jnp.repeat(jnp.arange(B), K // heads)))
    out, lse = jax.lax.optimization_barrier(parts)
    return Part(out.reshape(inputs.q.shape), lse.reshape(B, H, T))


def _split(x: Shaped[Array, "B X Y D"], groups: int) -> Shaped[Array, "steps 1 x Y D"]:
    """The heads of each row in groups."""
    return x.reshape(-1, 1, x.shape[1] // groups, *x.shape[2:])
