"""Attention of one device, a chunk of images at a time, so that memory does not grow with T x (all image tokens).

Each chunk is cut straight out of the keys and values of all layers, which are never copied as a whole; going forward, a chunk
that no position sees is not computed. Text is C images of one token each, in one chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.config import AttentionBackend
from owl3_jax.models import block_attention
from owl3_jax.models.block_attention import merge
from owl3_jax.models.quantized import Quantized, dequantize
from owl3_jax.models.visibility import Visibility, everything
from owl3_jax.models.xla_attention import MASKED

StackedKeys = Float[Array, "M B K I L D"] | Quantized


class _Chunk(NamedTuple):
    keys: Float[Array, "B K J L D"] | Quantized  # of J images
    values: Float[Array, "B K J L D"] | Quantized
    visible: Any  # Visibility of images, or None


def forward(
    q: Float[Array, "B H T D"],
    keys: StackedKeys,
    values: StackedKeys,
    layer: Int[Array, ""],
    visible: Visibility | None,
    *,
    images_per_chunk: int | None,
    backend: AttentionBackend,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Output (zero where nothing is seen) and log-sum-exp (about -1e30 there) of layer `layer`, in float32.

    `visible` is over images; None sees all of them. Quantized keys and values, which have no gradient, become floats chunk by
    chunk.
    """
    chunks, cut = _chunks(q, keys, values, layer, visible, images_per_chunk)
    attend = lambda chunk: block_attention.forward(backend, q, *_tokens(chunk, q.dtype))
    if chunks == 1:
        return attend(cut(0))

    def step(merged: tuple[Array, Array], number: Int[Array, ""]) -> tuple[Any, None]:
        chunk = cut(number)
        more = lambda: merge(*merged, *attend(chunk))
        return jax.lax.cond(chunk.visible.dense().any(), more, lambda: merged), None

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
    return jax.lax.scan(step, nothing, jnp.arange(chunks))[0]


def backward(
    q: Float[Array, "B H T D"],
    keys: Float[Array, "M B K I L D"],
    values: Float[Array, "M B K I L D"],
    layer: Int[Array, ""],
    visible: Visibility | None,
    lse: Float[Array, "B H T"],
    shift: Float[Array, "B H T"],
    d_out: Float[Array, "B H T D"],
    *,
    images_per_chunk: int | None,
    backend: AttentionBackend,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B K I L D"], Float[Array, "B K I L D"]]:
    """Gradients of q (float32) and of the layer's keys and values; see `xla_attention.backward`."""
    chunks, cut = _chunks(q, keys, values, layer, visible, images_per_chunk)
    I = keys.shape[3]

    def step(d_q, number):
        chunk = cut(number)
        more, *d_kv = block_attention.backward(backend, q, *_tokens(chunk, q.dtype), lse, shift, d_out)
        return d_q + more, [d_x.reshape(x.shape) for d_x, x in zip(d_kv, (chunk.keys, chunk.values), strict=True)]

    d_q, (d_keys, d_values) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), jnp.arange(chunks))
    return d_q, _join(d_keys, I), _join(d_values, I)


def _chunks(q, keys, values, layer, visible, images_per_chunk) -> tuple[int, Callable[..., _Chunk]]:
    """The number of chunks, and what cuts chunk `number` out of one layer.

    The last chunk ends with the last image; what it shares with the one before is of no segment in it.
    """
    images = keys.shape[3]
    size = min(images, images_per_chunk or images)
    if visible is None and size < images:
        visible = everything(q.shape[0], q.shape[2], images)

    def cut(number):
        start = jnp.minimum(number * size, images - size)
        of_layer = lambda x: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=3)[layer], x)
        return _Chunk(of_layer(keys), of_layer(values), None if visible is None else visible.part(start, size, number * size))

    return -(-images // size), cut


def _tokens(chunk: _Chunk, dtype) -> tuple[Array, Array, Visibility | None]:
    """A chunk as one block of keys [B, K, J*L, D], values, and what is seen of its images."""
    B, K, J, L, D = chunk.keys.shape
    keys, values = (dequantize(x, dtype).reshape(B, K, J * L, D) for x in chunk[:2])
    return keys, values, chunk.visible


def _join(x: Float[Array, "chunks B K J L D"], images: int) -> Float[Array, "B K I L D"]:
    chunks, B, K, size, L, D = x.shape
    whole = jnp.moveaxis(x[:-1], 0, 2).reshape(B, K, -1, L, D)
    return jnp.concatenate([whole, x[-1, :, :, chunks * size - images :]], axis=2)
