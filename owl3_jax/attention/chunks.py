"""Attention of one device, a chunk of images at a time, so that memory does not grow with T x (all image tokens).

Each chunk is cut directly from the keys and values of all layers, which are never copied as a whole. The forward pass skips a
chunk that no position sees. Text is C images of one token each, in one chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.attention.backends import choose_backend
from owl3_jax.attention.inputs import AttentionInputs, BlockInputs, Gradients, OutputGradient, Plan, StackedKeys
from owl3_jax.attention.parts import Part, merge, no_part
from owl3_jax.attention.visibility import Visibility, everything
from owl3_jax.nn.quantized import Quantized, dequantize


class _Chunk(NamedTuple):
    keys: Float[Array, "B K J L D"] | Quantized  # of J images
    values: Float[Array, "B K J L D"] | Quantized
    visible: Visibility | None  # of images


def attend_in_chunks(plan: Plan, inputs: AttentionInputs) -> Part:
    """Attention over the images of one layer, in float32.

    Quantized keys and values, which have no gradient, become floats chunk by chunk.
    """
    q = inputs.q
    chunks, cut = _chunks(plan, inputs)

    def attend_chunk(chunk: _Chunk) -> Part:
        block = _as_block(plan, q, chunk)
        return choose_backend(plan.backend, block).attend(block)

    if chunks == 1:
        return attend_chunk(cut(0))

    def step(merged: Part, number: Int[Array, ""]) -> tuple[Part, None]:
        chunk = cut(number)
        some = lambda: merge(merged, attend_chunk(chunk))
        seen = True if chunk.visible is None else chunk.visible.dense().any()
        return jax.lax.cond(seen, some, lambda: merged), None

    return jax.lax.scan(step, no_part(q), jnp.arange(chunks))[0]


def gradients_in_chunks(plan: Plan, inputs: AttentionInputs, given: OutputGradient) -> Gradients:
    """Gradients of q (float32) and of the layer's keys and values."""
    q, I = inputs.q, inputs.keys.shape[3]
    chunks, cut = _chunks(plan, inputs)

    def step(d_q: Float[Array, "B H T D"], number: Int[Array, ""]) -> tuple[Float[Array, "B H T D"], tuple[Array, Array]]:
        chunk = cut(number)
        block = _as_block(plan, q, chunk)
        more = choose_backend(plan.backend, block).gradients(block, given)
        return d_q + more.d_q, (more.d_k.reshape(chunk.keys.shape), more.d_v.reshape(chunk.values.shape))

    d_q, (d_keys, d_values) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), jnp.arange(chunks))
    return Gradients(d_q, _join(d_keys, I), _join(d_values, I))


def _chunks(plan: Plan, inputs: AttentionInputs) -> tuple[int, Callable[[Int[Array, ""] | int], _Chunk]]:
    """The number of chunks, and a function that cuts out chunk `number` of the layer.

    The last chunk ends with the last image; the images that it shares with the chunk before are not seen in it.
    """
    images, visible = inputs.keys.shape[3], inputs.visible
    size = min(images, plan.images_per_chunk or images)
    if visible is None and size < images:
        visible = everything(inputs.q.shape[0], inputs.q.shape[2], images)

    def cut(number: Int[Array, ""] | int) -> _Chunk:
        start = jnp.minimum(number * size, images - size)
        seen = None if visible is None else visible.part(start, size, number * size)
        return _Chunk(of_layer(inputs.keys, start), of_layer(inputs.values, start), seen)

    def of_layer(stack: StackedKeys, start: Int[Array, ""]) -> Float[Array, "B K J L D"] | Quantized:
        cut_out: Float[Array, "B K J L D"] | Quantized = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=3)[inputs.layer], stack
        )
        return cut_out

    return -(-images // size), cut


def _as_block(plan: Plan, q: Float[Array, "B H T D"], chunk: _Chunk) -> BlockInputs:
    """Keys and values of a chunk as one block [B, K, J*L, D]."""
    B, K, J, L, D = chunk.keys.shape
    flat = lambda x: dequantize(x, q.dtype).reshape(B, K, J * L, D)
    return BlockInputs(q, flat(chunk.keys), flat(chunk.values), chunk.visible, plan.real_keys, plan.reads_lse)


def _join(x: Float[Array, "chunks B K J L D"], images: int) -> Float[Array, "B K I L D"]:
    chunks, B, K, size, L, D = x.shape
    whole = jnp.moveaxis(x[:-1], 0, 2).reshape(B, K, -1, L, D)
    return jnp.concatenate([whole, x[-1, :, :, chunks * size - images :]], axis=2)
