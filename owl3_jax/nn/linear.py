"""Parameters, declared with one logical axis name per dim, and the linear map.

`owl3_jax.sharding` alone knows which mesh axes the names become.
"""

from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jaxtyping import Array, Float, Shaped

from owl3_jax.config import ComputeConfig
from owl3_jax.nn.int8_products import multiply_int8
from owl3_jax.nn.quantized import rescale
from owl3_jax.nn.remat import product
from owl3_jax.sharding import computes_on


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


class Adapter(NamedTuple):
    """What LoRA adds to a kernel: `scale` times the product of `a` and `b`. `owl3_jax.training.lora` makes them."""

    a: Float[Array, "*in r"]
    b: Float[Array, "r *out"]
    scale: Float[Array, "*stack"]
    dropout: Float[Array, "*stack"] | None


LORA = ("lora_a", "lora_b", "lora_scale", "lora_dropout")  # beside a kernel that has an adapter; the last one if it is wanted
_RANK = "z"  # letter of the rank in equations


def is_adapter(path: str) -> bool:
    """Whether the parameter of this path ("/" between levels) belongs to an adapter, and not to the model itself."""
    return path.rpartition("/")[2] in LORA


def _multiply(
    inputs: str, letters: str, output: str, x: Float[Array, "..."], kernel: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The einsum of input and kernel, whose letters these are.

    On CPUs dims are put in order before and after the product. Its library takes strided matrices, and the compiler gives it
    some, at more than what a copy of them costs; the barriers keep it from doing that.
    """
    if not computes_on("cpu"):
        return jnp.einsum(f"{inputs},{letters}->{output}", x, kernel)
    stacked = "".join(letter for letter in inputs if letter in letters and letter in output)
    rows = "".join(letter for letter in inputs if letter in output and letter not in stacked)
    summed = "".join(letter for letter in letters if letter not in output)
    columns = "".join(letter for letter in letters if letter in output and letter not in stacked)
    ordered_input, ordered_output = stacked + rows + summed, stacked + rows + columns
    if ordered_input != inputs:
        x = jax.lax.optimization_barrier(jnp.einsum(f"{inputs}->{ordered_input}", x))
    y = jnp.einsum(f"{ordered_input},{letters}->{ordered_output}", x, kernel)
    return y if ordered_output == output else jnp.einsum(f"{ordered_output}->{output}", jax.lax.optimization_barrier(y))


class Linear(nn.Module):
    """A linear map written as an einsum of input and kernel, e.g. `"bte,ehd->bthd"`.

    Dims of the kernel that the output lacks are summed over; a bias has those that the output keeps. A
    letter shared by all three is a stack of independent maps. Dims shared by kernel and output come in the
    same order in both. Kernels start with variance 1 / fan-in.

    Parameters may hold an `Adapter` of the kernel; `init` makes none.
    """

    equation: str
    shape: tuple[int, ...]  # of the kernel
    axes: tuple[str, ...]  # logical axis name of each dim of the kernel
    compute: ComputeConfig
    use_bias: bool = True

    def setup(self) -> None:
        inputs, letters, output = self._letters()
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
        inputs, letters, output = self._letters()
        if self.compute.quantization is None:
            y = _multiply(inputs, letters, output, x.astype(dtype), self.kernel.astype(dtype))
        else:
            y = product(multiply_int8(self.equation, x.astype(dtype), self.kernel.astype(dtype)))
        adapter = self._adapter()
        if adapter is not None:
            a, b = self._adapter_letters()
            low = "".join(letter for letter in inputs if letter not in letters or letter in output) + _RANK
            reduced = jnp.einsum(f"{inputs},{a}->{low}", self._drop(x, adapter).astype(dtype), adapter.a.astype(dtype))
            y += adapter.scale.astype(dtype) * jnp.einsum(f"{low},{b}->{output}", reduced, adapter.b.astype(dtype))
        missing = [axis for axis, letter in enumerate(output) if letter not in letters]
        if self.kernel_scale is not None:
            y = rescale(y, jnp.expand_dims(self.kernel_scale, missing))
        return y + jnp.expand_dims(self.bias, missing).astype(dtype) if self.use_bias else y

    def adapted_kernel(self) -> Shaped[Array, "..."]:
        """The kernel with its adapter, if it has one, for callers that multiply themselves."""
        adapter = self._adapter()
        if adapter is None:
            return self.kernel
        a, b = self._adapter_letters()
        product = jnp.einsum(f"{a},{b}->{self._letters()[1]}", adapter.a, adapter.b)
        scale = adapter.scale.reshape(adapter.scale.shape + (1,) * (product.ndim - adapter.scale.ndim))
        return (self.kernel + scale * product).astype(self.compute.dtype)

    def _letters(self) -> list[str]:
        """Letters of input, kernel and output."""
        return self.equation.replace("->", ",").split(",")

    def _adapter(self) -> Adapter | None:
        if not self.has_variable("params", LORA[0]):
            return None
        return Adapter(*(self.get_variable("params", name) for name in LORA))

    def _adapter_letters(self) -> tuple[str, str]:
        """Letters of `a` and `b` in equations."""
        inputs, letters, output = self._letters()
        stacked = "".join(letter for letter in letters if letter in inputs and letter in output)
        summed = "".join(letter for letter in letters if letter not in output)
        kept = "".join(letter for letter in letters if letter not in stacked + summed)
        return stacked + summed + _RANK, stacked + _RANK + kept

    def _drop(self, x: Float[Array, "..."], adapter: Adapter) -> Float[Array, "..."]:
        """The input with some of it set to zero, and the rest larger by as much, in training."""
        if adapter.dropout is None or not self.has_rng("dropout"):
            return x
        kept = jax.random.uniform(self.make_rng("dropout"), x.shape) >= adapter.dropout
        return jnp.where(kept, x / (1 - adapter.dropout), 0.0)
