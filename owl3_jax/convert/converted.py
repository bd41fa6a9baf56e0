"""A converted directory: what orbax and the rest of this project read, with all that the way back needs.

params/                  the parameters, an orbax checkpoint (`owl3_jax.convert.orbax_params`)
model.json               ModelConfig, and whether the official files hold a tied head twice
unused.safetensors       official tensors that the model never reads, unchanged; absent if there are none
config.json, tokenizer.json, ...  the other files of the official directory
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from owl3_jax.config import ConfigError, ModelConfig, load_json_tree
from owl3_jax.convert.official import OfficialCheckpoint
from owl3_jax.convert.orbax_params import Advance, write_params
from owl3_jax.formats.weight_files import CheckpointError, Tensor, read_safetensors
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter

PARAMS = "params"
MODEL = "model.json"
UNUSED = "unused"


def is_converted(directory: Path) -> bool:
    """Whether `write_converted` wrote this directory."""
    return (directory / MODEL).exists() and (directory / PARAMS).exists()


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory beside `path` to fill, which becomes `path` when all went well and is removed when not.

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


def read_model(directory: Path) -> tuple[ModelConfig, bool]:
    """The architecture of a converted directory, and whether the official files hold a tied head twice."""
    try:
        about = json.loads((directory / MODEL).read_text())
        return load_json_tree(ModelConfig, about["model"]), about["tied_head"]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(directory, [f"{MODEL}: {error!r}"]) from error


def read_unused(directory: Path) -> list[Tensor]:
    """The official tensors in a converted directory that are no parameters."""
    file = directory / f"{UNUSED}.safetensors"
    if not file.exists():
        return []
    tensors, problems = read_safetensors(file)
    if problems:
        raise CheckpointError(directory, problems)
    return list(tensors.values())
