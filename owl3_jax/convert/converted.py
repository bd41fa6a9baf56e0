"""A converted directory: what orbax and the rest of this project read, with all that the way back needs.

params/                  the parameters, as orbax writes them (zarr, one directory a parameter)
model.json               ModelConfig, and whether the official files hold a tied head twice
unused.safetensors       official tensors that the model never reads, unchanged; absent if there are none
config.json, tokenizer.json, ...  the other files of the official directory, unchanged
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.config import ConfigError, ModelConfig, load_json_tree
from owl3_jax.convert.official import OfficialCheckpoint, Parameter
from owl3_jax.convert.weight_files import CheckpointError, Tensor, read_safetensors
from owl3_jax.convert.weight_writer import TensorSpec, WeightWriter

Params = dict[str, Any]
Advance = Callable[[int, int], object]  # called with the bytes just done and those of the whole

PARAMS = "params"
MODEL = "model.json"
UNUSED = "unused"
_BLOCK_BYTES = 32 * 2**20  # written at a time; also the least that a host can read of a parameter


def ignore(done: int, total: int) -> None:
    """An `Advance` that tells nobody."""


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


def write_converted(directory: Path, config: ModelConfig, checkpoint: OfficialCheckpoint, advance: Advance = ignore) -> None:
    """Writes an official checkpoint into an existing directory; memory holds one row of one parameter at a time."""
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
    except (OSError, ValueError, KeyError, ConfigError) as error:
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


def write_params(path: Path, parameters: Mapping[str, Parameter], advance: Advance = ignore) -> None:
    """An orbax checkpoint of parameters that are read block by block while it is written."""
    total = sum(parameter.nbytes for parameter in parameters.values())
    writer = _BlockWriter(lambda done: advance(done, total))
    with _quiet_orbax():
        registry = ocp.type_handlers.create_type_handler_registry((Parameter, writer))
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(unflatten_dict(dict(parameters), sep="/")))


def read_params(path: Path, wanted: Params) -> Params:
    """Parameters of an orbax checkpoint.

    Args:
        path: an orbax checkpoint of parameters.
        wanted: the part of the tree to read; each leaf a jax.ShapeDtypeStruct. With a sharding it becomes a jax array of
            which every host reads its share, without one a numpy array.
    """
    restore_args = jax.tree.map(_restore_args, wanted)
    with _quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore_args, partial_restore=True)
        try:
            return checkpointer.restore(path.absolute(), args=args)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(path, [str(error)]) from error


def stored_params(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Path ("/" between levels) -> shape and dtype of every parameter of an orbax checkpoint."""
    with _quiet_orbax(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flatten_dict(tree, sep="/").items()}


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


class _BlockWriter(ocp.type_handlers.TypeHandler):
    """Tells orbax how to save a `Parameter`: as the numpy array that it would be, but never whole in memory."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values: Sequence[Parameter], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        for parameter, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            await self._write(parameter, Path(info.parent_dir) / info.name)
        return []

    async def _write(self, parameter: Parameter, path: Path) -> None:
        block = block_shape(parameter)
        store = await tensorstore.open(
            {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": {"compressor": None}},
            create=True,
            dtype=parameter.dtype,
            shape=parameter.shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=block),
        )
        for index in _blocks(parameter.shape, block):
            values = parameter.read(index)
            await store[index].write(values)
            self._advance(values.nbytes)

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError("only saves: what is saved is read as numpy or jax arrays")

    async def deserialize(self, infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        raise NotImplementedError("only saves: what is saved is read as numpy or jax arrays")


def block_shape(parameter: Parameter) -> tuple[int, ...]:
    """How much of a parameter is written at a time: a row of a stack at most, cut along its first dim."""
    stack, row = ((1,), parameter.shape[1:]) if parameter.stacked else ((), parameter.shape)
    pieces = -(-math.prod(row) * parameter.dtype.itemsize // _BLOCK_BYTES)
    return (*stack, max(1, -(-row[0] // pieces)), *row[1:])


def _blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, size, part) for size, part in zip(shape, block, strict=True))
    for corner in itertools.product(*starts):
        ends = (min(start + part, size) for start, part, size in zip(corner, block, shape, strict=True))
        yield tuple(slice(start, end) for start, end in zip(corner, ends, strict=True))


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps orbax from warning of what is meant: no OCDBT, and no jax array among the leaves."""
    logger, level = logging.getLogger("absl"), logging.getLogger("absl").level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
