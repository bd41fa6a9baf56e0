"""Layers that the vision encoder, the projector and the decoder share.

Every parameter is declared with one logical axis name per dim; `owl3_jax.sharding` alone knows what
mesh axes these become.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from flax.linen.spmd import RulesFallback
from jaxtyping import Array, Float, Int, Shaped


def constrain(x: Shaped[Array, "..."], axes: tuple[str | None, ...]) -> Shaped[Array, "..."]:
    """Splits an activation by the logical names of its dims; does nothing where no mesh and rules are set.

    Raises ValueError for a name that no rule has.
    """
    return nn.with_logical_constraint(x, axes, fallback=RulesFallback.RAISE_ERROR)


class Linear(nn.Module):
    """A linear map written as an einsum of input and kernel, e.g. `"bte,ehd->bthd"`.

    Dims of the kernel that the output lacks are summed over; a bias has those that it keeps. A letter
    that all three share is a stack of independent maps. Kernels start with variance 1 / fan-in.
    """

    equation: str
    shape: tuple[int, ...]  # of the kernel
    axes: tuple[str, ...]  # logical axis name of each dim of the kernel
    use_bias: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        inputs, _, rest = self.equation.partition(",")
        letters, _, output = rest.partition("->")
        summed = tuple(i for i, letter in enumerate(letters) if letter not in output)
        stacked = tuple(i for i, letter in enumerate(letters) if letter in inputs and letter in output)
        kept = tuple(i for i, letter in enumerate(letters) if letter in output)
        free = tuple(i for i in kept if i not in stacked)
        init = initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=summed, out_axis=free, batch_axis=stacked)
        self.kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape, jnp.dtype(self.param_dtype))
        if self.use_bias:
            axes, shape = tuple(self.axes[i] for i in kept), tuple(self.shape[i] for i in kept)
            zeros = nn.with_logical_partitioning(initializers.zeros_init(), axes)
            self.bias = self.param("bias", zeros, shape, jnp.dtype(self.param_dtype))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = jnp.einsum(self.equation, x.astype(self.dtype), self.kernel.astype(self.dtype))
        return y + self.bias.astype(self.dtype) if self.use_bias else y


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
    param_dtype: str = "float32"

    def setup(self) -> None:
        ones = nn.with_logical_partitioning(initializers.ones_init(), self.axes)
        self.scale = self.param("scale", ones, self.shape, jnp.dtype(self.param_dtype))

    def __call__(self, x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
        return rms_norm(x, self.scale, self.eps)


def rope(x: Float[Array, "*rows heads D"], positions: Int[Array, "*rows"], theta: float) -> Float[Array, "*rows heads D"]:
    """Rotary position embedding, rotate-halves convention, computed in float32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)  # [D/2]
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [*rows, 1, D/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
