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
    keys: Float[Array, "B K C D"] | Quantized  # of J images: C = J * L
    values: Float[Array, "B K C D"] | Quantized
    visible: Visibility | None  # of images


def attend_in_chunks(plan: Plan, inputs: AttentionInputs) -> Part:
    """Attention over the images of one layer, in float32.

    Quantized keys and values, which have no gradient, become floats chunk by chunk.
    """
    q, L = inputs.q, inputs.keys.shape[4]
    chunks, cut = _chunks(plan, inputs)

    def attend_chunk(chunk: _Chunk) -> Part:
        block = _as_block(plan, q, chunk, L)
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
    q, (I, L) = inputs.q, inputs.keys.shape[3:5]
    chunks, cut = _chunks(plan, inputs)

    def step(d_q: Float[Array, "B H T D"], number: Int[Array, ""]) -> tuple[Float[Array, "B H T D"], tuple[Array, Array]]:
        chunk = cut(number)
        block = _as_block(plan, q, chunk, L)
        more = choose_backend(plan.backend, block).gradients(block, given)
        by_image = lambda x: x.reshape(*x.shape[:2], -1, L, x.shape[-1])
        return d_q + more.d_q, (by_image(more.d_k), by_image(more.d_v))

    d_q, (d_keys, d_values) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), jnp.arange(chunks))
    return Gradients(d_q, _join(d_keys, I), _join(d_values, I))


def _chunks(plan: Plan, inputs: AttentionInputs) -> tuple[int, Callable[[Int[Array, ""] | int], _Chunk]]:
    """The number of chunks, and a function that cuts out chunk `number` of the layer.

    The last chunk ends with the last image; the images that it shares with the chunk before are not seen in it.
    """
    (images, tokens), visible = inputs.keys.shape[3:5], inputs.visible
    size = min(images, plan.images_per_chunk or images)
    if visible is None and size < images:
        visible = everything(inputs.q.shape[0], inputs.q.shape[2], images)

    def cut(number: Int[Array, ""] | int) -> _Chunk:
        start = jnp.minimum(number * size, images - size)
        seen = None if visible is None else visible.part(start, size, number * size)
        return _Chunk(of_layer(inputs.keys, start), of_layer(inputs.values, start), seen)

    def of_layer(stack: StackedKeys, start: Int[Array, ""]) -> Float[Array, "B K C D"] | Quantized:
        # The tokens of all images as one dim before anything is cut out: products read a slice in place, but no reshaped one.
        whole = jax.tree.map(lambda x: x.reshape(*x.shape[:3], images * tokens, *x.shape[5:]), stack)
        cut_out: Float[Array, "B K C D"] | Quantized = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start * tokens, size * tokens, axis=3)[inputs.layer], whole
        )
        return cut_out

    return -(-images // size), cut


def _as_block(plan: Plan, q: Float[Array, "B H T D"], chunk: _Chunk, tokens: int) -> BlockInputs:
    """Keys and values of a chunk of images of L = `tokens` as one block."""
    images, visible = chunk.keys.shape[2] // tokens, chunk.visible
    if visible is None and images > 1 and plan.real_tokens not in (None, tokens):
        visible = everything(q.shape[0], q.shape[2], images)  # which hides padding between images
    keys, values = (dequantize(x, q.dtype) for x in (chunk.keys, chunk.values))
    return BlockInputs(q, keys, values, visible, plan.real_tokens, plan.reads_lse)


def _join(x: Float[Array, "chunks B K J L D"], images: int) -> Float[Array, "B K I L D"]:
    chunks, B, K, size, L, D = x.shape
    whole = jnp.moveaxis(x[:-1], 0, 2).reshape(B, K, -1, L, D)
    return jnp.concatenate([whole, x[-1, :, :, chunks * size - images :]], axis=2)
