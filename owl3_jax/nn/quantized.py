"""int8 instead of floats: integers times a scale, symmetric, so that zero stays zero.

The dims that share a scale are, in a weight, those that are summed over: there is one scale for each output channel, and the
product is multiplied by it. In cached keys and values it is the last dim: there is one scale for each token and head.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8

from owl3_jax.config import ComputeConfig

_LARGEST = 127  # -128 is not used
SCALE_BYTES = 4


class Quantized(NamedTuple):
    """Vectors as `values * scale[..., None]`. A pytree whose arrays agree in all dims but the last."""

    values: Int8[Array, "*dims D"]
    scale: Float32[Array, "*dims"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the vectors."""
        return self.values.shape


Vectors = Float[Array, "*dims D"] | Quantized


def quantize(x: Float[Array, "..."], dims: tuple[int, ...]) -> tuple[Int8[Array, "..."], Float32[Array, "..."]]:
    """Integers, and scales without the dims `dims`, which share them: off by at most half a scale. Zeros have a scale of 0."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis=dims, keepdims=True) / _LARGEST
    values = jnp.round(x / jnp.where(scale == 0, 1, scale))
    return values.astype(jnp.int8), scale.squeeze(dims)


def quantize_like(x: Float[Array, "*dims D"], other: Float[Array, "*others D"] | Quantized) -> Vectors:
    """`x` in the form and dtype of `other`."""
    if isinstance(other, Quantized):
        return Quantized(*quantize(x, (x.ndim - 1,)))
    return x.astype(other.dtype)


def dequantize(x: Vectors, dtype: DTypeLike) -> Float[Array, "*dims D"]:
    """Vectors in `dtype`."""
    if isinstance(x, Quantized):
        return (x.values.astype(jnp.float32) * x.scale[..., None]).astype(dtype)
    return x.astype(dtype)


def zero_vectors(shape: tuple[int, ...], compute: ComputeConfig) -> Vectors:
    """An empty cache, in `compute.cache_dtype`."""
    if compute.cache_dtype == "int8":
        return Quantized(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))
    return jnp.zeros(shape, jnp.dtype(compute.dtype))


def vector_bytes(size: int, compute: ComputeConfig) -> int:
    """Bytes of a cached vector of `size` numbers."""
    return size + SCALE_BYTES if compute.cache_dtype == "int8" else size * jnp.dtype(compute.dtype).itemsize


def rescale(y: Float[Array, "..."], scale: Float32[Array, "..."]) -> Float[Array, "..."]:
    """A product with int8 weights times their scales, in the dtype of the product."""
    return (y * scale).astype(y.dtype)
