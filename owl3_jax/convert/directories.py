"""Whole directories there and back: Hugging Face's layout <-> orbax with everything else beside it."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from owl3_jax.config import DType, ModelConfig
from owl3_jax.convert.converted import MODEL, PARAMS, is_converted, new_directory, read_model, read_unused, write_converted
from owl3_jax.convert.official import load_config, open_checkpoint
from owl3_jax.convert.orbax_params import Advance, StoredParameter, open_params
from owl3_jax.convert.table import EMBEDDING, TIED_HEAD, entries_for, official_names, official_shape, row_shape, to_official
from owl3_jax.convert.weight_files import CheckpointError
from owl3_jax.convert.weight_writer import MAX_SHARD_BYTES, TensorSpec, WeightWriter

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".index.json", MODEL)


def _ignore(done: int, total: int) -> None:
    """An `Advance` that tells nobody."""


def to_orbax(source: Path, destination: Path, *, dtype: DType | None = None, advance: Advance = _ignore) -> None:
    """Converts a Hugging Face directory; memory holds one tensor at a time.

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
    advance: Advance = _ignore,
) -> None:
    """Converts a directory that `to_orbax` wrote back; memory holds one tensor at a time.

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
    parameters = open_params(source / PARAMS, config, np.dtype(dtype) if dtype else None)
    specs = _specs(source, config, parameters, tied_head)
    total = sum(spec.nbytes for spec in specs)
    with new_directory(destination) as directory:
        _copy_other_files(source, directory, dtype)
        writer = WeightWriter(directory, specs, max_shard_bytes=max_shard_bytes)
        for name, tensor in _tensors(source, config, parameters, tied_head):
            writer.write(name, tensor)
            advance(tensor.nbytes, total)


def _specs(source: Path, config: ModelConfig, parameters: Mapping[str, StoredParameter], tied_head: bool) -> list[TensorSpec]:
    """What `_tensors` will yield."""
    specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in read_unused(source)]
    for entry in entries_for(config):
        names = (*official_names(entry, config), *([TIED_HEAD] if tied_head and entry.official == EMBEDDING else []))
        parameter = parameters[entry.path]
        shape = official_shape(entry, row_shape(entry, parameter.shape))
        specs += [TensorSpec(name, parameter.dtype, shape) for name in names]
    return specs


def _tensors(
    source: Path, config: ModelConfig, parameters: Mapping[str, StoredParameter], tied_head: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Official names and tensors; one of them is read at a time."""
    for tensor in read_unused(source):
        yield tensor.name, tensor.read()
    for entry in entries_for(config):
        parameter = parameters[entry.path]
        within = (slice(None),) * (len(parameter.shape) - 1)
        for row, name in enumerate(official_names(entry, config)):
            value = parameter.read((slice(row, row + 1), *within))[0] if entry.stacked else parameter.read()
            yield name, to_official(entry, value)
        if tied_head and entry.official == EMBEDDING:
            yield TIED_HEAD, to_official(entry, value)


def _copy_other_files(source: Path, directory: Path, dtype: DType | None) -> None:
    """Copies all but the weights; a new dtype is told in config.json too."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, directory / file.name)
    if dtype:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": dtype}, indent=2) + "\n")
