"""Keys and values of all layers: in one stack, or in a separate buffer for each layer.

A scan over layers reads a stack [N, ...]. Layers that are written out (`ComputeConfig.scan_layers` off) read separate buffers
in place; from a stack, each layer would first have to be copied out.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from owl3_jax.config import ComputeConfig
from owl3_jax.nn.quantized import Quantized, Vectors, quantize_like, zero_vectors

Layer = Int[Array, ""] | int


class PerLayer(NamedTuple):
    """A stack of one layer, [1, ...], for each layer: its dims are those of a stack of all layers."""

    layers: tuple[Vectors, ...]


Stack = Float[Array, "..."] | Quantized | PerLayer


def zero_stack(shape: tuple[int, ...], compute: ComputeConfig) -> Stack:
    """An empty cache for `shape[0]` layers, as `compute` keeps it."""
    if compute.scan_layers:
        return zero_vectors(shape, compute)
    return PerLayer(tuple(zero_vectors((1, *shape[1:]), compute) for _ in range(shape[0])))


def stack_like(x: Float[Array, "N *rest"], other: Stack) -> Stack:
    """The vectors `x` of all layers, in the form and dtype of `other`."""
    return split_like(quantize_like(x, other.layers[0] if isinstance(other, PerLayer) else other), other)


def split_like(x: Vectors, other: Stack) -> Stack:
    """The stack `x`, split into layers if `other` is."""
    if isinstance(other, PerLayer):
        return PerLayer(
            tuple(jax.tree.map(lambda x, layer=layer: x[layer : layer + 1], x) for layer in range(len(other.layers)))
        )
    return x


def as_one_stack(stack: Stack) -> Vectors:
    """The stack itself. Raises TypeError for separate buffers, which can be read but not written to layer by layer."""
    if isinstance(stack, PerLayer):
        raise TypeError("layers write to one stack; a cache with a buffer for each layer can only be the past")
    return stack


def select_layer(stack: Stack, layer: Layer) -> tuple[Vectors, Layer]:
    """The array that holds a layer, and the layer's row in it."""
    return (stack.layers[int(layer)], 0) if isinstance(stack, PerLayer) else (stack, layer)
