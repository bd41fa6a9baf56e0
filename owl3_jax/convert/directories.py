"""Whole directories there and back: Hugging Face's layout <-> orbax with everything else beside it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.config import DType, ModelConfig
from owl3_jax.convert.converted import (
    MODEL,
    PARAMS,
    Advance,
    ignore,
    is_converted,
    new_directory,
    read_model,
    read_params,
    read_unused,
    stored_params,
    write_converted,
)
from owl3_jax.convert.official import load_config, open_checkpoint, parameter_shapes
from owl3_jax.convert.table import EMBEDDING, TIED_HEAD, Entry, official_names, official_shape, row_shape, to_official
from owl3_jax.convert.weight_files import CheckpointError
from owl3_jax.convert.weight_writer import MAX_SHARD_BYTES, TensorSpec, WeightWriter

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".index.json", MODEL)
_Parameters = dict[Entry, jax.ShapeDtypeStruct]


def to_orbax(source: Path, destination: Path, *, dtype: DType | None = None, advance: Advance = ignore) -> None:
    """Converts a Hugging Face directory; memory holds one row of one parameter at a time.

    Args:
        source: a directory in the official layout.
        destination: a new directory (`owl3_jax.convert.converted` describes it); it appears when all of it is written.
        dtype: of the parameters; each keeps its own by default.
        advance: called with the bytes just written and those of the whole.

    Raises:
        CheckpointError: the source does not hold a model, or the destination exists.
    """
    config = load_config(source)
    checkpoint = open_checkpoint(source, config, np.dtype(dtype) if dtype else None)
    with new_directory(destination) as directory:
        _copy_other_files(source, directory, dtype)
        write_converted(directory, config, checkpoint, advance)


def to_hugging_face(
    source: Path,
    destination: Path,
    *,
    dtype: DType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Advance = ignore,
) -> None:
    """Converts a directory that `to_orbax` wrote back; memory holds one parameter at a time.

    Tensors get the names, shapes and, without `dtype`, the bits that they came with, the unused ones too.

    Args:
        source: a directory that `to_orbax` wrote.
        destination: a new directory; it appears when all of it is written.
        dtype: of the parameters; each keeps its own by default.
        max_shard_bytes: of one weight file.
        advance: called with the bytes just written and those of the whole.

    Raises:
        CheckpointError: the source was not written by `to_orbax`, its parameters are not those of its model, or the
            destination exists.
    """
    if not is_converted(source):
        raise CheckpointError(source, [f"it has no {MODEL} with {PARAMS}/ beside it: only what was converted can go back"])
    config, tied_head = read_model(source)
    parameters = _stored_parameters(source, config, np.dtype(dtype) if dtype else None)
    specs = _specs(source, config, parameters, tied_head)
    total = sum(spec.nbytes for spec in specs)
    with new_directory(destination) as directory:
        _copy_other_files(source, directory, dtype)
        writer = WeightWriter(directory, specs, max_shard_bytes=max_shard_bytes)
        for name, tensor in _tensors(source, config, parameters, tied_head):
            writer.write(name, tensor)
            advance(tensor.nbytes, total)


def _stored_parameters(source: Path, config: ModelConfig, dtype: np.dtype | None) -> _Parameters:
    """Shape and wanted dtype of the parameters in a converted directory, checked against its model."""
    stored, shapes = stored_params(source / PARAMS), parameter_shapes(config)
    expected = {entry.path: shape for entry, shape in shapes.items()}
    problems = [f"{path}: missing" for path in expected.keys() - stored.keys()]
    problems += [f"{path}: no parameter of this model" for path in stored.keys() - expected.keys()]
    for path in expected.keys() & stored.keys():
        if expected[path] != stored[path].shape:
            problems.append(f"{path}: shape {stored[path].shape}, expected {expected[path]}")
    if problems:
        raise CheckpointError(source / PARAMS, sorted(problems))
    return {entry: jax.ShapeDtypeStruct(shape, dtype or stored[entry.path].dtype) for entry, shape in shapes.items()}


def _specs(source: Path, config: ModelConfig, parameters: _Parameters, tied_head: bool) -> list[TensorSpec]:
    """What `_tensors` will yield."""
    specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in read_unused(source)]
    for entry, leaf in parameters.items():
        names = (*official_names(entry, config), *([TIED_HEAD] if tied_head and entry.official == EMBEDDING else []))
        shape = official_shape(entry, row_shape(entry, leaf.shape))
        specs += [TensorSpec(name, np.dtype(leaf.dtype), shape) for name in names]
    return specs


def _tensors(source: Path, config: ModelConfig, parameters: _Parameters, tied_head: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Official names and tensors; one parameter is read at a time."""
    for tensor in read_unused(source):
        yield tensor.name, tensor.read()
    for entry, leaf in parameters.items():
        wanted = unflatten_dict({entry.path: leaf}, sep="/")
        value = flatten_dict(read_params(source / PARAMS, wanted), sep="/")[entry.path]
        names = official_names(entry, config)
        for name, row in zip(names, value if row_shape(entry, leaf.shape) != leaf.shape else [value], strict=True):
            yield name, to_official(entry, row)
        if tied_head and entry.official == EMBEDDING:
            yield TIED_HEAD, value


def _copy_other_files(source: Path, directory: Path, dtype: DType | None) -> None:
    """Copies all but the weights; a new dtype is told in config.json too."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, directory / file.name)
    if dtype:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": dtype}, indent=2) + "\n")
