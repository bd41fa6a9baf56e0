"""int8 weights, quantised while a checkpoint is read: a quarter of float32's memory, half of bfloat16's.

Every matrix of the vision encoder, the projector and the decoder, the token embedding and the head become integers with one
float32 scale for each output channel (a row of embedding or head); norms, biases and gates stay as they are. Which
parameters have scales, and which dims a scale covers, is what the model declares with `ComputeConfig.weight_dtype`.
"""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.batch import AnyArray
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.nn.quantized import quantize
from owl3_jax.params import Params

_SCALE = "_scale"


def weight_quantizer(config: ModelConfig) -> Callable[[str, AnyArray], Mapping[str, AnyArray]]:
    """A function that quantises one parameter: from its path ("/" between levels) and value to the parameters that replace it.

    A matrix is replaced by int8 values of the same shape and by scales, which a mesh splits like its output channels.
    """
    covered = _covered_dims(config)

    def convert(path: str, value: AnyArray) -> Mapping[str, AnyArray]:
        if path not in covered:
            return {path: value}
        values, scale = _quantize(value, covered[path])
        return {path: values, path + _SCALE: scale}

    return convert


def quantize_weights(params: Params, config: ModelConfig) -> Params:
    """The parameters for `weight_dtype="int8"`, from stacked ones (`scan_layers`); `unstack_layers` takes both."""
    convert, flat = weight_quantizer(config), flatten_dict(params, sep="/")
    return unflatten_dict({path: x for name, value in flat.items() for path, x in convert(name, value).items()}, sep="/")


def _covered_dims(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of each parameter that has scales -> the dims that a scale lacks, by the logical names of both."""
    names = nn.get_partition_spec(abstract_params(config, ComputeConfig(weight_dtype="int8")))
    flat = flatten_dict(names, sep="/")
    covered = lambda path: tuple(dim for dim, name in enumerate(flat[path]) if name not in flat[path + _SCALE])
    return {path: covered(path) for path in flat if path + _SCALE in flat}


_quantize = functools.partial(jax.jit, static_argnums=1)(quantize)
