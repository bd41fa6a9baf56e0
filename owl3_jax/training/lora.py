"""LoRA: adapters of matrices, as parameters beside their kernels, stacked and sharded as these are.

A kernel [S, *in, *out] (S layers, where it is stacked) gets

    lora_a      [S, *in, rank]    normal with variance 1 / fan-in
    lora_b      [S, rank, *out]   zeros: a run starts with the model as it is
    lora_scale  [S]               the same number; not trained
    lora_dropout [S]              the same number, where it is not zero; not trained

`owl3_jax.nn.linear.Linear` uses them wherever they are. Which dims are inputs is known from the conversion table.
"""

import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from owl3_jax.config import Config, ConfigError
from owl3_jax.convert.table import Entry, entries_for
from owl3_jax.models.owl3 import abstract_params, initial_params
from owl3_jax.params import Params
from owl3_jax.training.parts import patterns_of

KERNEL = "/kernel"
TRAINED = ("/lora_a", "/lora_b")


def abstract_run_params(config: Config) -> Params:
    """Shape, dtype and logical axis names of all parameters of a run, adapters included; nothing is allocated."""
    base: Params = abstract_params(config.model, config.compute)
    flat = flatten_dict(base, sep="/")
    return unflatten_dict(flat | {k: v for e in adapted(config) for k, v in _boxes(e, flat[e.path], config).items()}, sep="/")


def initial_run_params(config: Config, key: Key[Array, ""]) -> Params:
    """Fresh parameters, adapters included; to be traced."""
    base = flatten_dict(nn.unbox(initial_params(config.model, config.compute, key)), sep="/")
    return unflatten_dict(base | initial_adapters(config, key), sep="/")


def initial_adapters(config: Config, key: Key[Array, ""]) -> dict[str, Array]:
    """Fresh adapters by path; to be traced."""
    shapes = {path: box.value for path, box in flatten_dict(abstract_run_params(config), sep="/").items()}
    adapters: dict[str, Array] = {}
    for number, entry in enumerate(adapted(config)):
        place, fan_in = entry.path.removesuffix(KERNEL), math.prod(_input_dims(entry, shapes[entry.path].shape))
        fixed = {"lora_scale": config.lora.scale, "lora_dropout": config.lora.dropout, "lora_b": 0.0}
        for name, value in fixed.items():
            if (shape := shapes.get(f"{place}/{name}")) is not None:
                adapters[f"{place}/{name}"] = jnp.full(shape.shape, value, shape.dtype)
        a = shapes[f"{place}/lora_a"]
        adapters[f"{place}/lora_a"] = jax.random.normal(jax.random.fold_in(key, number), a.shape, a.dtype) / fan_in**0.5
    return adapters


def adapted(config: Config) -> tuple[Entry, ...]:
    """The rows of the conversion table whose kernels get adapters.

    Raises ConfigError when a regex of `lora.target` matches no matrix.
    """
    if not config.lora.rank:
        return ()
    linear = [entry for entry in entries_for(config.model) if entry.layout in ("linear", "linear_from_heads")]
    patterns = patterns_of(config.lora.target)
    matched = {pattern: [entry for entry in linear if _matches(pattern, entry.path)] for pattern in patterns}
    if unused := [repr(pattern) for pattern, found in matched.items() if not found]:
        known = ", ".join(entry.path.removesuffix(KERNEL) for entry in linear)
        raise ConfigError(f"lora.target: {', '.join(unused)} matches no matrix; they are {known}")
    return tuple(entry for entry in linear if any(entry in found for found in matched.values()))


def is_trained_adapter(path: str) -> bool:
    """Whether this parameter is part of an adapter, and trained."""
    return path.endswith(TRAINED)


def _matches(pattern: str, path: str) -> bool:
    return bool(re.fullmatch(pattern, path) or re.fullmatch(pattern, path.removesuffix(KERNEL)))


def _input_dims(entry: Entry, shape: Sequence[int]) -> tuple[int, ...]:
    start = 1 if entry.stacked else 0
    return tuple(shape[start : start + (2 if entry.layout == "linear_from_heads" else 1)])


def _boxes(entry: Entry, kernel: nn.LogicallyPartitioned, config: Config) -> dict[str, nn.LogicallyPartitioned]:
    """The parameters of one adapter, with logical axis names."""
    shape, names = tuple(kernel.value.shape), tuple(kernel.names)
    start = 1 if entry.stacked else 0
    split = start + len(_input_dims(entry, shape))
    place, rank = entry.path.removesuffix(KERNEL), config.lora.rank
    described = {
        "lora_a": ((*shape[:split], rank), (*names[:split], "lora_rank")),
        "lora_b": ((*shape[:start], rank, *shape[split:]), (*names[:start], "lora_rank", *names[split:])),
        "lora_scale": (shape[:start], names[:start]),
    }
    if config.lora.dropout:
        described["lora_dropout"] = described["lora_scale"]
    dtype = jnp.dtype(config.compute.param_dtype)
    return {
        f"{place}/{name}": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(dims, dtype), axes)
        for name, (dims, axes) in described.items()
    }
