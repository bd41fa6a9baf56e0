"""Parameters, declared with one logical axis name per dim, and the linear map.

`owl3_jax.sharding` alone knows which mesh axes the names become.
"""

from typing import cast

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers
from jaxtyping import Array, Float

from owl3_jax.config import ComputeConfig
from owl3_jax.nn.quantized import rescale


def declare(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    compute: ComputeConfig,
) -> Array:
    """A parameter of `module` in `compute.param_dtype`, with a logical axis name for each dim."""
    return cast(Array, module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.dtype(compute.param_dtype)))


def declare_scale(
    module: nn.Module, weight: str, shape: tuple[int, ...], axes: tuple[str, ...], compute: ComputeConfig
) -> Array | None:
    """`{weight}_scale` [output channels of the weight] in float32 if it is int8, else None."""
    if compute.weight_dtype is None:
        return None
    init = nn.with_logical_partitioning(initializers.ones_init(), axes)
    return cast(Array, module.param(f"{weight}_scale", init, shape, jnp.float32))


class Linear(nn.Module):
    """A linear map written as an einsum of input and kernel, e.g. `"bte,ehd->bthd"`.

    Dims of the kernel that the output lacks are summed over; a bias has those that the output keeps. A
    letter shared by all three is a stack of independent maps. Dims shared by kernel and output come in the
    same order in both. Kernels start with variance 1 / fan-in.
    """

    equation: str
    shape: tuple[int, ...]  # of the kernel
    axes: tuple[str, ...]  # logical axis name of each dim of the kernel
    compute: ComputeConfig
    use_bias: bool = True

    def setup(self) -> None:
        inputs, _, rest = self.equation.partition(",")
        letters, _, output = rest.partition("->")
        summed = tuple(i for i, letter in enumerate(letters) if letter not in output)
        stacked = tuple(i for i, letter in enumerate(letters) if letter in inputs and letter in output)
        kept = tuple(i for i, letter in enumerate(letters) if letter in output)
        free = tuple(i for i in kept if i not in stacked)
        init = initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=summed, out_axis=free, batch_axis=stacked)
        self.kernel: Array = declare(self, "kernel", init, self.shape, self.axes, self.compute)
        axes, shape = tuple(self.axes[i] for i in kept), tuple(self.shape[i] for i in kept)
        self.kernel_scale = declare_scale(self, "kernel", shape, axes, self.compute)
        if self.use_bias:
            self.bias: Array = declare(self, "bias", initializers.zeros_init(), shape, axes, self.compute)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        dtype = self.compute.dtype
        y = jnp.einsum(self.equation, x.astype(dtype), self.kernel.astype(dtype))
        letters, output = self.equation.split(",")[1].split("->")
        missing = [axis for axis, letter in enumerate(output) if letter not in letters]
        if self.kernel_scale is not None:
            y = rescale(y, jnp.expand_dims(self.kernel_scale, missing))
        return y + jnp.expand_dims(self.bias, missing).astype(dtype) if self.use_bias else y
