"""Reads weight files of the official layout tensor by tensor: safetensors, or PyTorch's `.bin`.

Only a tensor's own bytes of the file are mapped into memory, as long as it is used, and a slice of it reads no others, so
neither the number nor the size of the files matters. The safetensors library is not used because it reads whole tensors.
"""

import functools
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from owl3_jax.config import JsonTree
from owl3_jax.formats.errors import CheckpointError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"


class Tensor(NamedTuple):
    """A tensor in a file; nothing of it is in memory before `read`."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]  # a read-only view of the file

    @property
    def nbytes(self) -> int:
        """Size in the file, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def find_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name: of its `.safetensors` files, or else of its `.bin` ones.

    Raises:
        CheckpointError: listing every file that is missing or cannot be read, every tensor that is truncated or described
            wrongly, that two files hold, or that is not where the index says.
    """
    index = read_index(directory)
    files = sorted(set(index.values())) if index else _weight_files(directory)
    tensors: dict[str, Tensor] = {}
    problems = [] if files else ["it has no .safetensors or .bin file"]
    for file in files:
        found, wrong = _read_file(file)
        twice = tensors.keys() & found.keys()
        problems += wrong + [f"{name}: in {tensors[name].file.name} and again in {file.name}" for name in sorted(twice)]
        tensors |= found
    if index and not problems:
        problems += _differences_from_index(index, tensors)
    if problems:
        raise CheckpointError(directory, problems)
    return tensors


def read_index(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, as the index of sharded weights says; empty without one.

    Raises CheckpointError when it is not an index.
    """
    path = next((directory / name for name in (SAFETENSORS_INDEX, TORCH_INDEX) if (directory / name).exists()), None)
    if path is None:
        return {}
    try:
        files = json.loads(path.read_text())["weight_map"]
        return {name: directory / Path(file).name for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(directory, [f"{path.name}: not an index of weights ({error!r})"]) from error


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))


def _differences_from_index(index: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    hint = "are shards of different checkpoints mixed?"
    for name, file in index.items():
        if name not in tensors:
            yield f"{name}: not in {file.name}, where the index says it is; {hint}"
        elif tensors[name].file != file:
            yield f"{name}: in {tensors[name].file.name}, but the index says {file.name}; {hint}"
    for name in sorted(tensors.keys() - index.keys()):
        yield f"{name}: in {tensors[name].file.name}, but not in the index; {hint}"


class _CorruptError(ValueError):
    """What is wrong with a file or tensor."""


def _read_file(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one file, and what is wrong with it."""
    try:
        return read_torch(file) if file.suffix == ".bin" else read_safetensors(file)
    except _CorruptError as error:
        return {}, [f"{file.name}: {error}"]


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one `.safetensors` file, and what is wrong with others in it.

    The format: 8 bytes for the length of a JSON header, the header, the data.
    """
    header, start = _read_header(file)
    tensors, problems = {}, []
    for name, about in header.items():
        try:
            tensors[name] = _tensor(name, about, file, start)
        except _CorruptError as error:
            problems.append(f"{file.name}: {name}: {error}")
    return tensors, problems


def _read_header(file: Path) -> tuple[JsonTree, int]:
    """The JSON header without its metadata, and where the data starts."""
    if not file.exists():
        raise _CorruptError("this file is missing")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise _CorruptError(f"not a safetensors file, or truncated within its header; it has {size} bytes")
        try:
            header = json.loads(stream.read(length))
            return {name: about for name, about in header.items() if name != "__metadata__"}, 8 + length
        except (ValueError, AttributeError) as error:
            raise _CorruptError(f"corrupt header: {error}") from error


def _tensor(name: str, about: Any, file: Path, start: int) -> Tensor:  # Any: a JSON value, checked here
    try:
        code, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _CorruptError(f"corrupt header: {about!r}") from error
    if code not in DTYPES:
        raise _CorruptError(f"dtype {code} is none of {', '.join(DTYPES)}")
    tensor = Tensor(name, file, DTYPES[code], shape, functools.partial(_map, file, DTYPES[code], start + begin, shape))
    if end - begin != tensor.nbytes:
        raise _CorruptError(f"corrupt header: {end - begin} bytes for {code} {list(shape)}, which takes {tensor.nbytes}")
    if start + end > file.stat().st_size:
        raise _CorruptError(f"truncated: it ends at byte {start + end} of {file.stat().st_size}; get the file again")
    return tensor


def _map(file: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, mode="r", offset=offset, shape=shape)


def read_torch(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one PyTorch `.bin` file, and what is wrong with others in it.

    PyTorch, which must be installed, only says where in the file they are. Nothing but tensors is ever unpickled.
    """
    if importlib.util.find_spec("torch") is None:
        raise _CorruptError("a .bin file is read by PyTorch, which is not installed; install it, or convert to safetensors")
    if not file.exists():
        raise _CorruptError("this file is missing")
    # By name, so that nothing but this line depends on PyTorch.
    torch, fake_tensor = importlib.import_module("torch"), importlib.import_module("torch._subclasses.fake_tensor")
    try:
        with fake_tensor.FakeTensorMode():  # reads no tensor, but notes where each storage starts
            state = dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # what it raises for a damaged file has no common class
        raise _CorruptError(f"torch.load cannot read it: {str(error).splitlines()[0]}") from error
    tensors, problems = {}, []
    for name, value in state.items():
        try:
            tensors[name] = _torch_tensor(name, value, file)
        except _CorruptError as error:
            problems.append(f"{file.name}: {name}: {error}")
    return tensors, problems


def _torch_tensor(name: str, value: Any, file: Path) -> Tensor:  # Any: a torch.Tensor, which need not be installed
    kind = str(getattr(value, "dtype", type(value)))
    dtype = next((known for known in DTYPES.values() if kind == f"torch.{known.name}"), None)
    if dtype is None:
        raise _CorruptError(f"{kind} is not a tensor of {', '.join(known.name for known in DTYPES.values())}")
    start = value.untyped_storage()._checkpoint_offset  # None in files of PyTorch before 1.6
    if start is None or not value.is_contiguous():
        raise _CorruptError(
            "not stored in one piece, or in PyTorch's old format; load it with PyTorch and save it as safetensors"
        )
    shape, offset = tuple(value.shape), start + value.storage_offset() * dtype.itemsize
    return Tensor(name, file, dtype, shape, functools.partial(_map, file, dtype, offset, shape))
