"""Parameters from a checkpoint directory (official, converted, or a training run's), whole or straight onto a mesh."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Shaped

from owl3_jax.batch import AnyArray
from owl3_jax.config import ComputeConfig, DType, ModelConfig, field_differences
from owl3_jax.convert.merged import Readable, merge
from owl3_jax.convert.peft import open_peft
from owl3_jax.convert.stored import open_parameters
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.params import Params
from owl3_jax.sharding import param_shardings

Convert = Callable[[str, AnyArray], Mapping[str, AnyArray]]  # path and value of a parameter -> others, by path


def load_params(
    directory: Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    *,
    dtype: DType | None = None,
    vocab_multiple: int = 1,
    convert: Convert | None = None,
    adapter: Path | None = None,
) -> Params:
    """The parameters of a checkpoint directory of any kind.

    With a mesh every host reads only the bytes of its own shards, one parameter after the other.

    Args:
        directory: a Hugging Face directory, one that `owl3 convert` wrote, or a training run's workdir,
            whose last checkpoint is read.
        config: the architecture, from `owl3_jax.formats.checkpoint.load_config`.
        mesh: where to put the parameters, sharded by the rules; without one they are numpy arrays.
        dtype: what to cast to while reading; the checkpoint's own by default.
        vocab_multiple: as `ComputeConfig` has it: embedding and head get rows of zeros up to a multiple.
        convert: called with the path and value of each parameter as soon as it is read; the tree gets what it returns.
        adapter: a PEFT directory that is merged.

    Raises:
        CheckpointError: the directory does not hold this model, or the adapter does not fit it; it lists everything that is
            wrong.
    """
    _require_same_model(directory, load_config(directory), config)
    parameters: Mapping[str, Readable] = open_parameters(directory, config, np.dtype(dtype) if dtype else None)
    if adapter is not None:
        parameters = merge(parameters, open_peft(adapter, config))
    return read_parameters(parameters, config, mesh, vocab_multiple, convert)


def read_parameters(
    parameters: Mapping[str, Readable],
    config: ModelConfig,
    mesh: Mesh | None = None,
    vocab_multiple: int = 1,
    convert: Convert | None = None,
) -> Params:
    """The tree of parameters of a checkpoint, one read after the other; see `load_params`."""
    boxed = abstract_params(config, ComputeConfig(vocab_multiple=vocab_multiple))
    shapes = flatten_dict(nn.unbox(boxed), sep="/")
    shardings = flatten_dict(param_shardings(boxed, mesh), sep="/") if mesh else {}

    def read(path: str, parameter: Readable) -> Shaped[np.ndarray, "..."] | Shaped[Array, "..."]:
        shape = shapes[path].shape
        part = functools.partial(_read_padded, parameter, shape)
        return part() if mesh is None else jax.make_array_from_callback(shape, shardings[path], part)

    tree: dict[str, AnyArray] = {}
    for path, parameter in parameters.items():
        value = read(path, parameter)
        tree |= convert(path, value) if convert else {path: value}
    return unflatten_dict(tree, sep="/")


def _require_same_model(directory: Path, saved: ModelConfig, wanted: ModelConfig) -> None:
    differences = field_differences(saved, wanted, "model")
    if differences:
        raise CheckpointError(directory, ["it is of another model; use its settings", *differences])


def _read_padded(
    parameter: Readable, shape: tuple[int, ...], index: tuple[slice, ...] | None = None
) -> Shaped[np.ndarray, "..."]:
    """As `parameter.read`, followed by rows of zeros up to `shape`."""
    if parameter.shape == shape:
        return parameter.read(index)
    rows, *others = index or (slice(None),) * len(shape)
    start, stop, _ = rows.indices(shape[0])
    there = parameter.shape[0]
    values = parameter.read((slice(min(start, there), min(stop, there)), *others))
    return np.pad(values, [(0, stop - start - len(values)), *[(0, 0)] * (values.ndim - 1)])
