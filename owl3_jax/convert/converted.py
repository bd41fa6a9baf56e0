"""Writes converted directories; `owl3_jax.formats.converted` describes and reads them."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from owl3_jax.config import ModelConfig
from owl3_jax.convert.official import OfficialCheckpoint
from owl3_jax.convert.orbax_params import Advance, write_params
from owl3_jax.formats.converted import MODEL, PARAMS, UNUSED
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory next to `path` to fill: it becomes `path` on success and is removed after a failure.

    Raises CheckpointError when `path` exists.
    """
    if path.exists():
        raise CheckpointError(path, ["it exists already; choose another place or remove it"])
    unfinished = path.absolute().with_name(f".{path.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_converted(directory: Path, config: ModelConfig, checkpoint: OfficialCheckpoint, advance: Advance) -> None:
    """Writes an official checkpoint into an existing directory; memory holds one block of one parameter at a time."""
    about = {"model": dataclasses.asdict(config), "tied_head": checkpoint.tied_head}
    (directory / MODEL).write_text(json.dumps(about, indent=2) + "\n")
    if checkpoint.unused:
        writer = WeightWriter(directory, [TensorSpec(t.name, t.dtype, t.shape) for t in checkpoint.unused], stem=UNUSED)
        for tensor in checkpoint.unused:
            writer.write(tensor.name, tensor.read())
    write_params(directory / PARAMS, checkpoint.parameters, advance)
