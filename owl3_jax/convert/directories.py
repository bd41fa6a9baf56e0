"""Whole directories in both directions: Hugging Face's layout <-> orbax's, with all other files.

A training run is converted in one direction only, to a directory that others can load.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from owl3_jax.config import DType, JsonTree
from owl3_jax.convert.converted import new_directory, write_converted
from owl3_jax.convert.official import open_checkpoint
from owl3_jax.convert.orbax_params import Advance
from owl3_jax.convert.stored import StoredCheckpoint, open_stored
from owl3_jax.convert.table import EMBEDDING, TIED_HEAD, entries_for, official_names, official_shape, row_shape, to_official
from owl3_jax.formats.checkpoint import check_path, is_stored, load_config
from owl3_jax.formats.config_json import CONFIG, config_json_of, with_dtype
from owl3_jax.formats.converted import MODEL
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, read_json_object
from owl3_jax.formats.weight_writer import MAX_SHARD_BYTES, TensorSpec, WeightWriter
from owl3_jax.formats.workdir import is_workdir

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".index.json", MODEL)
_COPIED_FROM_A_RUN = ("tokenizer.json", "processor.json")


def _ignore(done: int, total: int) -> None:
    """An `Advance` that reports nothing."""


def to_orbax(source: Path, destination: Path, *, dtype: DType | None = None, advance: Advance = _ignore) -> None:
    """Converts a Hugging Face directory; memory holds one tensor at a time.

    Args:
        source: a directory in the official layout.
        destination: a new directory (`owl3_jax.formats.converted` describes it); it appears when all of it is written.
        dtype: of the parameters; each keeps its own by default.
        advance: called with the bytes just written and those of the whole.

    Raises:
        CheckpointError: the source does not hold a model, or the destination exists.
    """
    if is_stored(source):
        raise CheckpointError(source, ["it is an orbax checkpoint already; --to-hf makes a Hugging Face directory of it"])
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
    ema: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Advance = _ignore,
) -> None:
    """Converts a directory that `to_orbax` wrote back, or exports a training run; memory holds one tensor at a time.

    All tensors, the unused ones too, keep the names, shapes and, without `dtype`, the bits of the original. A run has no
    unused ones; its config.json is made from its `ModelConfig`.

    Args:
        source: a directory that `to_orbax` wrote, or a training run's workdir, whose last checkpoint is exported.
        destination: a new directory; it appears when all of it is written.
        dtype: of the parameters; each keeps its own by default.
        ema: take the moving average of a run's parameters.
        max_shard_bytes: of one weight file.
        advance: called with the bytes just written and those of the whole.

    Raises:
        CheckpointError: the source is neither, its parameters are not those of its model, or the destination exists.
    """
    check_path(source)
    if not is_stored(source):
        raise CheckpointError(
            source, [f"it has no {MODEL} with params/, and no checkpoints/: it is neither converted nor trained"]
        )
    stored = open_stored(source, np.dtype(dtype) if dtype else None, ema=ema)
    specs = _specs(stored)
    total = sum(spec.nbytes for spec in specs)
    with new_directory(destination) as directory:
        if is_workdir(source):
            _describe_run(source, stored, directory)
        else:
            _copy_other_files(source, directory, dtype)
        writer = WeightWriter(directory, specs, max_shard_bytes=max_shard_bytes)
        for name, tensor in _tensors(stored):
            writer.write(name, tensor)
            advance(tensor.nbytes, total)


def _specs(stored: StoredCheckpoint) -> list[TensorSpec]:
    """What `_tensors` will yield."""
    specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in stored.unused]
    for entry in entries_for(stored.config):
        names = official_names(entry, stored.config)
        if stored.tied_head and entry.official == EMBEDDING:
            names = (*names, TIED_HEAD)
        parameter = stored.parameters[entry.path]
        shape = official_shape(entry, row_shape(entry, parameter.shape))
        specs += [TensorSpec(name, parameter.dtype, shape) for name in names]
    return specs


def _tensors(stored: StoredCheckpoint) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Official names and tensors; one of them is read at a time."""
    for tensor in stored.unused:
        yield tensor.name, tensor.read()
    for entry in entries_for(stored.config):
        parameter = stored.parameters[entry.path]
        within = (slice(None),) * (len(parameter.shape) - 1)
        for row, name in enumerate(official_names(entry, stored.config)):
            value = parameter.read((slice(row, row + 1), *within))[0] if entry.stacked else parameter.read()
            yield name, to_official(entry, value)
        if stored.tied_head and entry.official == EMBEDDING:
            yield TIED_HEAD, to_official(entry, value)


def _describe_run(workdir: Path, stored: StoredCheckpoint, directory: Path) -> None:
    """Writes config.json and copies what makes prompts for the model."""
    dtype = stored.parameters["language_model/embed_tokens"].dtype.name
    _write_config_json(directory, config_json_of(stored.config) | {"torch_dtype": dtype})
    for name in _COPIED_FROM_A_RUN:
        if (workdir / name).exists():
            shutil.copyfile(workdir / name, directory / name)


def _copy_other_files(source: Path, directory: Path, dtype: DType | None) -> None:
    """Copies all but the weights, byte by byte; with `dtype`, config.json says it wherever it names one."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, directory / file.name)
    if dtype:
        _write_config_json(directory, with_dtype(_read_config_json(source), dtype))


def _read_config_json(source: Path) -> JsonTree:
    try:
        return read_json_object(source / CONFIG)
    except JsonError as error:
        raise CheckpointError(source, [f"{CONFIG}: {error}"]) from error


def _write_config_json(directory: Path, tree: JsonTree) -> None:
    (directory / CONFIG).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
