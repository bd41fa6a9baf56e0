"""Products with weights in int8 while training: `compute.quantization`.

Of the three products of a linear map two take int8 operands:

    output               y = x k        a scale for each vector of x, and for each output channel of k
    gradient of input    dx = dy k^T    the same int8 k, whose scales multiply dy first; then a scale for each vector of dy
    gradient of weights  dk = x^T dy    in floats, from x and dy as they are

Scales come from the largest absolute value over what is summed, at every step anew. The gradient of weights sums over all
tokens, where a single one would set the step for all; MaxText's `quantization="int8"` leaves it in floats with
`quantization_local_shard_count=0`. Rounding passes gradients on as they are. Parameters stay floats.
"""

import functools
from types import ModuleType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from owl3_jax.config import ConfigError

if TYPE_CHECKING:
    from qwix import QArray

_Kept = tuple[Array, "QArray"]  # for the backward pass: the input, and the quantised kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply_int8(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."]) -> Float[Array, "..."]:
    """The einsum of input and kernel, both of one dtype, from int8 operands.

    `equation` is as `owl3_jax.nn.linear.Linear` has it. Raises ConfigError when qwix is not installed.
    """
    return _forward(equation, x, kernel)[0]


def _forward(equation: str, x: Array, kernel: Array) -> tuple[Array, _Kept]:
    inputs, letters, output = _split(equation)
    k = _quantize(kernel, letters, output)
    y: Array = _qwix().einsum(equation, _quantize(x, inputs, output), k)
    return y.astype(x.dtype), (x, k)


def _backward(equation: str, kept: _Kept, dy: Array) -> tuple[Array, Array]:
    inputs, letters, output = _split(equation)
    x, k = kept
    scale = jnp.squeeze(k.scale, [axis for axis, letter in enumerate(letters) if letter not in output])
    scale = jnp.expand_dims(scale, [axis for axis, letter in enumerate(output) if letter not in letters])
    unscaled = _qwix().QArray(k.qvalue, jnp.ones((1,) * k.qvalue.ndim))
    dx: Array = _qwix().einsum(f"{output},{letters}->{inputs}", _quantize(dy * scale, output, inputs), unscaled)
    return dx.astype(x.dtype), jnp.einsum(f"{inputs},{output}->{letters}", x, dy)


multiply_int8.defvjp(_forward, _backward)


def _split(equation: str) -> list[str]:
    """Letters of input, kernel and output."""
    return equation.replace("->", ",").split(",")


def _quantize(x: Array, letters: str, kept: str) -> "QArray":
    """int8 with float32 scales, one for each index of the dims that the product keeps."""
    channels = [axis for axis, letter in enumerate(letters) if letter in kept]
    quantized: QArray = _qwix().quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=channels)
    return quantized


def _qwix() -> ModuleType:
    """The package, which only those who train in int8 need."""
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            "compute.quantization=int8 needs qwix, which is not installed: pip install 'owl3_jax[int8]'"
        ) from error
    module: ModuleType = qwix
    return module
