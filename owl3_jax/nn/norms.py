"""RMSNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jaxtyping import Array, Float

from owl3_jax.config import ComputeConfig
from owl3_jax.nn.linear import declare


def rms_norm(x: Float[Array, "*rows E"], scale: Float[Array, " E"], eps: float) -> Float[Array, "*rows E"]:
    """RMSNorm: normalised in float32, then scaled in the dtype of `x` (as Qwen2 does)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


class RMSNorm(nn.Module):
    """The scale of one RMSNorm, or of a stack of them (then only `scale` is read)."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    eps: float
    compute: ComputeConfig

    def setup(self) -> None:
        self.scale: Array = declare(self, "scale", initializers.ones_init(), self.shape, self.axes, self.compute)

    def __call__(self, x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        return rms_norm(x, self.scale, self.eps)
