"""Parameters from a checkpoint directory (official, converted, or a training run's), whole or straight onto a mesh."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from owl3_jax.config import ComputeConfig, DType, ModelConfig, field_differences
from owl3_jax.convert import official
from owl3_jax.convert.official import Parameter, open_checkpoint
from owl3_jax.convert.orbax_params import StoredParameter
from owl3_jax.convert.stored import is_stored, open_stored, read_stored_config
from owl3_jax.convert.weight_files import CheckpointError
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.sharding import param_shardings

Params = dict[str, Any]
Convert = Callable[[str, Any], Mapping[str, Any]]  # path and value of a parameter -> others, by path


def load_config(directory: Path) -> ModelConfig:
    """The architecture of a checkpoint directory of any kind.

    Raises CheckpointError when the directory does not tell it.
    """
    return read_stored_config(directory) if is_stored(directory) else official.load_config(directory)


def load_params(
    directory: Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    *,
    dtype: DType | None = None,
    convert: Convert | None = None,
) -> Params:
    """The parameters of a checkpoint directory of any kind.

    With a mesh every host reads only the bytes of its own shards, one parameter after the other.

    Args:
        directory: a Hugging Face directory, one that `tools/convert_checkpoint.py` wrote, or a training run's workdir,
            whose last checkpoint is taken.
        config: the architecture, as `load_config` tells it.
        mesh: where to put the parameters, sharded by the rules; without one they are numpy arrays.
        dtype: what to cast to while reading; the checkpoint's own by default.
        convert: takes each parameter by path, as soon as it is read, to what shall stand for it in the tree.

    Raises:
        CheckpointError: the directory does not hold this model; it lists everything that is wrong.
    """
    cast = np.dtype(dtype) if dtype else None
    if is_stored(directory):
        stored = open_stored(directory, cast)
        _require_same_model(directory, stored.config, config)
        return read_parameters(stored.parameters, config, mesh, convert)
    _require_same_model(directory, official.load_config(directory), config)
    return read_parameters(open_checkpoint(directory, config, cast).parameters, config, mesh, convert)


def read_parameters(
    parameters: Mapping[str, Parameter] | Mapping[str, StoredParameter],
    config: ModelConfig,
    mesh: Mesh | None = None,
    convert: Convert | None = None,
) -> Params:
    """The tree of parameters of a checkpoint, one read after the other; see `load_params`."""
    shardings = _shardings(config, mesh)

    def read(path: str, parameter: Parameter | StoredParameter) -> np.ndarray | jax.Array:
        if mesh is None:
            return parameter.read()
        return jax.make_array_from_callback(parameter.shape, shardings[path], parameter.read)

    tree: dict[str, np.ndarray | jax.Array] = {}
    for path, parameter in parameters.items():
        value = read(path, parameter)
        tree |= convert(path, value) if convert else {path: value}
    return unflatten_dict(tree, sep="/")


def _require_same_model(directory: Path, saved: ModelConfig, wanted: ModelConfig) -> None:
    differences = field_differences(saved, wanted, "model")
    if differences:
        raise CheckpointError(directory, ["it is of another model; use its settings", *differences])


def _shardings(config: ModelConfig, mesh: Mesh | None) -> dict[str, NamedSharding]:
    """Path of each parameter -> how the rules put it on the mesh; empty without one."""
    return flatten_dict(param_shardings(abstract_params(config, ComputeConfig()), mesh), sep="/") if mesh else {}
