"""Parameters as an orbax checkpoint that is written and read piece by piece.

orbax keeps each parameter as a zarr array, named by the path with dots; TensorStore, which orbax itself uses, reads and
writes parts of it. Training lets orbax handle whole trees. Here memory must never hold a whole tree, let alone most of it
twice, as orbax does while it restores.
"""

import contextlib
import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NoReturn

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax.traverse_util import unflatten_dict
from jaxtyping import Shaped
from orbax.checkpoint.type_handlers import ParamInfo

from owl3_jax.config import ModelConfig
from owl3_jax.convert.merged import Addend, Readable, merge
from owl3_jax.convert.official import Index, Parameter, parameter_shapes
from owl3_jax.convert.table import VOCABULARY, entries_for
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.nn.linear import LORA, is_adapter

NO_BASE: Mapping[str, Readable] = MappingProxyType({})
Advance = Callable[[int, int], object]  # called with the bytes just processed and the total

_DATABASE = "manifest.ocdbt"  # present where orbax keeps all arrays in one database, as training does
_BLOCK_BYTES = 32 * 2**20  # written at a time; also the least that a host can read of a parameter


class StoredAdapter(NamedTuple):
    """LoRA's part of a kernel [S, *in, *out] (S layers, where it is stacked), as training stores it."""

    a: tensorstore.TensorStore  # [S, *in, r]
    b: tensorstore.TensorStore  # [S, r, *out]
    scale: tensorstore.TensorStore  # [S]
    dropout: tensorstore.TensorStore | None = None  # [S]; None: zero

    def read(self, index: Index) -> Shaped[np.ndarray, "..."]:
        """What it adds to the part of the kernel that `index` chooses, in float32."""
        stacked = len(self.scale.shape)
        split = len(self.a.shape) - 1
        a = self.a[index[:split]].read().result().astype(np.float32)
        b = self.b[(*index[:stacked], slice(None), *index[split:])].read().result().astype(np.float32)
        scale = self.scale[index[:stacked] or ...].read().result().astype(np.float32)
        layers, rank = a.shape[:stacked], a.shape[-1]
        product = a.reshape(*layers, -1, rank) @ b.reshape(*layers, rank, -1)
        return (scale[..., None, None] * product).reshape(*a.shape[:-1], *b.shape[stacked + 1 :])


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """One parameter of an orbax checkpoint; nothing of it is in memory before `read`."""

    checkpoint: Path  # where it is
    path: str  # "/" between levels
    dtype: np.dtype  # of what `read` returns
    store: tensorstore.TensorStore

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return tuple(self.store.shape)

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """The part that `index` (a slice for each dim) chooses, or all of it.

        Raises CheckpointError when a piece of it is missing or damaged.
        """
        try:
            values = self.store[index or ...].read().result()
        except ValueError as error:  # TensorStore's, for whatever it finds
            raise CheckpointError(self.checkpoint, [f"{self.path}: {error}"]) from error
        return values.astype(self.dtype, copy=False)


def open_params(
    path: Path, config: ModelConfig, dtype: np.dtype | None = None, base: Mapping[str, Readable] = NO_BASE
) -> dict[str, Readable]:
    """The parameters that `write_params` or training wrote, by path ("/" between levels), adapters merged.

    They will be read in `dtype` (default: as stored). Those that are not there come from `base`.

    Raises CheckpointError listing all that are missing, damaged, unknown to the config, or of a wrong shape.
    """
    shapes = {entry.path: shape for entry, shape in parameter_shapes(config).items()}
    tables = {entry.path for entry in parameter_shapes(config) if entry.official in VOCABULARY}
    everything = _find_arrays(path)
    there = {name: place for name, place in everything.items() if not is_adapter(name)}
    problems = [f"{name}: missing" for name in shapes.keys() - there.keys() - base.keys()]
    problems += [f"{name}: not a parameter of this model" for name in there.keys() - shapes.keys()]
    found: dict[str, Readable] = dict(base)
    adapters: dict[str, Addend] = {}
    for name in sorted(shapes.keys() & (there.keys() | base.keys())):
        try:
            if (adapter := _open_adapter(name, everything)) is not None:
                adapters[name] = adapter
            if name not in there:
                continue
            store = _open_array(there[name])
        except ValueError as error:  # TensorStore's, for whatever it finds
            problems.append(f"{name}: {error}")
            continue
        if name in tables and store.shape[0] > shapes[name][0]:
            store = store[: shapes[name][0]]  # followed by padding for sharding (`ComputeConfig.vocab_multiple`)
        if tuple(store.shape) != shapes[name]:
            problems.append(f"{name}: shape {list(store.shape)}, expected {list(shapes[name])}")
        found[name] = StoredParameter(path, name, dtype or store.dtype.numpy_dtype, store)
    if problems:
        raise CheckpointError(path, sorted(problems))
    return merge(found, adapters)


def open_adapters(path: Path, config: ModelConfig) -> dict[str, StoredAdapter]:
    """The adapters of a training run's parameters, by their kernel's path. Raises CheckpointError when one is damaged."""
    everything = _find_arrays(path)
    try:
        found = {entry.path: _open_adapter(entry.path, everything) for entry in entries_for(config)}
    except ValueError as error:  # TensorStore's, for whatever it finds
        raise CheckpointError(path, [str(error)]) from error
    return {name: adapter for name, adapter in found.items() if adapter is not None}


def _open_array(place: tensorstore.KvStore) -> tensorstore.TensorStore:
    return tensorstore.open({"driver": "zarr", "fill_missing_data_reads": False}, kvstore=place).result()


def _open_adapter(kernel: str, arrays: Mapping[str, tensorstore.KvStore]) -> StoredAdapter | None:
    """The adapter that is stored beside a kernel, if there is one."""
    names = [f"{kernel.removesuffix('/kernel')}/{name}" for name in LORA]
    if not kernel.endswith("/kernel") or not all(name in arrays for name in names[:3]):
        return None
    return StoredAdapter(*(_open_array(arrays[name]) for name in names if name in arrays))


def _find_arrays(path: Path) -> dict[str, tensorstore.KvStore]:
    """Where each array of an orbax checkpoint is stored: in a directory of its own, or in the one database of them all."""
    files = {"driver": "file", "path": f"{path.absolute()}/"}
    place = {"driver": "ocdbt", "base": files} if (path / _DATABASE).exists() else files
    try:
        root = tensorstore.KvStore.open(place).result()
        keys = [key.decode() for key in root.list().result()]
    except ValueError as error:  # TensorStore's, for whatever it finds
        raise CheckpointError(path, [str(error)]) from error
    names = [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]
    return {name.replace(".", "/"): root / f"{name}/" for name in names}


def write_params(path: Path, parameters: Mapping[str, Parameter], advance: Advance) -> None:
    """An orbax checkpoint of parameters (by path, "/" between levels) that are read block by block as it is written."""
    total = sum(parameter.nbytes for parameter in parameters.values())
    writer = _BlockWriter(lambda done: advance(done, total))
    with _quiet_orbax():
        registry = ocp.type_handlers.create_type_handler_registry((Parameter, writer))
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(unflatten_dict(dict(parameters), sep="/")))


class _BlockWriter(ocp.type_handlers.TypeHandler):
    """Tells orbax how to save a `Parameter`: as the numpy array that it would be, but never whole in memory."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(
        self, values: Sequence[Parameter], infos: Sequence[ParamInfo], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[ocp.future.Future]:
        for parameter, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            await self._write(parameter, Path(info.parent_dir) / info.name)
        return []

    async def _write(self, parameter: Parameter, directory: Path) -> None:
        block = block_shape(parameter)
        place = {"driver": "file", "path": f"{directory}/"}
        store = await tensorstore.open(
            {"driver": "zarr", "kvstore": place, "metadata": {"compressor": None}, "store_data_equal_to_fill_value": True},
            create=True,
            dtype=parameter.dtype,
            shape=parameter.shape,
            chunk_layout=tensorstore.ChunkLayout(chunk_shape=block),
        )
        for index in _blocks(parameter.shape, block):
            values = parameter.read(index)
            await store[index].write(values)
            self._advance(values.nbytes)

    async def metadata(self, infos: Sequence[ParamInfo]) -> NoReturn:
        raise NotImplementedError("only saves: what is saved is read as a numpy array")

    async def deserialize(self, infos: Sequence[ParamInfo], args: Sequence[ocp.RestoreArgs] | None = None) -> NoReturn:
        raise NotImplementedError("only saves: what is saved is read as a numpy array")


def block_shape(parameter: Parameter) -> tuple[int, ...]:
    """How much of a parameter is written at a time: a row of a stack at most, cut along its first dim."""
    stack, row = ((1,), parameter.shape[1:]) if parameter.entry.stacked else ((), parameter.shape)
    pieces = -(-math.prod(row) * parameter.dtype.itemsize // _BLOCK_BYTES)
    return (*stack, max(1, -(-row[0] // pieces)), *row[1:])


def _blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Iterator[Index]:
    """Index of each block of an array; the last ones along a dim may be smaller."""
    starts = (range(0, size, part) for size, part in zip(shape, block, strict=True))
    for corner in itertools.product(*starts):
        ends = (min(start + part, size) for start, part, size in zip(corner, block, shape, strict=True))
        yield tuple(slice(start, end) for start, end in zip(corner, ends, strict=True))


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silences orbax's warnings of what is intended here: no OCDBT, and no jax array among the leaves."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
