"""Reads weight files of the official layout tensor by tensor: safetensors, or PyTorch's `.bin`.

Only a tensor's own bytes of the file are mapped into memory, as long as it is used, and a slice of it reads no others, so
neither the number nor the size of the files matters. The safetensors library is not used because it reads whole tensors.
"""

import functools
import importlib
import importlib.util
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from owl3_jax.config import JsonTree
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, read_json_object
from owl3_jax.host.foreign import foreign_errors

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
_LONGEST = 200  # characters of a header that a message shows


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


class _Layout(NamedTuple):
    """The names that transformers gives the files of one format."""

    single: str  # of weights in one file
    index_file: str  # of weights in several
    pattern: str  # of all files with weights


_SAFETENSORS = _Layout("model.safetensors", SAFETENSORS_INDEX, "*.safetensors")
_TORCH = _Layout("pytorch_model.bin", TORCH_INDEX, "pytorch_model*.bin")
_LAYOUTS = (_SAFETENSORS, _TORCH)
# Other tools keep these beside the weights: adapters, a second copy under other names, the state of a training run.
_NOT_WEIGHTS = ("adapter_", "consolidated", "optimizer", "scheduler", "training_args")


def has_weights(directory: Path) -> bool:
    """Whether there are weight files in a directory, or an index that says that there should be."""
    return _layout_of(directory) is not None


def find_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint directory by name.

    They are those of the `.safetensors` files, or else of the `.bin` ones. An index that is left over from other weights does
    not count, nor do files that another tool keeps there; a warning names the weights that are not read.

    Raises:
        CheckpointError: listing every file that is missing or cannot be read, every tensor that is truncated or described
            wrongly, that two files hold, or that is not where the index says.
    """
    index, files = _choose_files(directory)
    tensors: dict[str, Tensor] = {}
    problems = [] if files else ["it has no .safetensors or .bin file with the weights of a model"]
    for file in files:
        found, wrong = read_weight_file(file)
        twice = tensors.keys() & found.keys()
        problems += wrong + [f"{name}: in {tensors[name].file.name} and again in {file.name}" for name in sorted(twice)]
        tensors |= found
    if index and not problems:
        problems += _differences_from_index(index, tensors)
    if problems:
        raise CheckpointError(directory, problems)
    return tensors


def _layout_of(directory: Path) -> _Layout | None:
    """The first layout with a file; an index alone counts only where no layout has one, as it may be left over."""
    with_files = (layout for layout in _LAYOUTS if _weight_files(directory, layout))
    with_index = (layout for layout in _LAYOUTS if (directory / layout.index_file).exists())
    return next(itertools.chain(with_files, with_index), None)


def _weight_files(directory: Path, layout: _Layout) -> list[Path]:
    return [file for file in sorted(directory.glob(layout.pattern)) if not file.name.startswith(_NOT_WEIGHTS)]


def _choose_files(directory: Path) -> tuple[dict[str, Path], list[Path]]:
    """The files to read, and their index: tensor name -> file, empty without one.

    Weights in a single file are preferred, as transformers prefers them, to an index with which they are not meant.
    """
    layout = _layout_of(directory)
    if layout is None:
        return {}, []
    files, single = _weight_files(directory, layout), directory / layout.single
    index = _read_index(directory / layout.index_file)
    if single in files and single not in index.values() and _replaces(single, index):
        index, chosen = {}, [single]
    else:
        chosen = sorted(set(index.values())) or files
    indices = [directory / layout.index_file] if index else []
    others = [file for known in _LAYOUTS for file in [*sorted(directory.glob(known.pattern)), directory / known.index_file]]
    _warn_of_unread(directory, tuple(chosen), tuple(file for file in others if file.exists() and file not in chosen + indices))
    return index, chosen


def _replaces(single: Path, index: Mapping[str, Path]) -> bool:
    """Whether a single file is to be read instead of those of an index: it has all their tensors, or they are not there."""
    if not any(file.exists() for file in index.values()):
        return True
    return index.keys() <= read_weight_file(single)[0].keys()


@functools.cache  # once: a checkpoint is looked at several times while it is loaded
def _warn_of_unread(directory: Path, chosen: tuple[Path, ...], unread: tuple[Path, ...]) -> None:
    if unread:
        logging.getLogger(__name__).warning(
            "%s: the weights are read from %s, and not from %s", directory, _names(chosen), _names(unread)
        )


def _names(files: Sequence[Path], most: int = 5) -> str:
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(file.name for file in files[:most]) + more


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> file, as the index of sharded weights says; empty without one.

    Raises CheckpointError when it is not an index.
    """
    if not path.exists():
        return {}
    try:
        files = read_json_object(path).get("weight_map") or {}
        check(isinstance(files, dict) and bool(files), "weight_map", files, "an object: names of tensors to names of files")
        for name, file in files.items():
            check(isinstance(file, str) and Path(file).name != "", f"weight_map.{name[:100]}", file, "the name of a file")
    except JsonError as error:
        raise CheckpointError(path.parent, [f"{path.name}: not an index of weights: {error}"]) from error
    return {name: path.parent / Path(file).name for name, file in files.items()}


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


def read_weight_file(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one file by name, and what is wrong with it."""
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
        except (ValueError, AttributeError, RecursionError) as error:
            raise _CorruptError(f"corrupt header: {error}") from error


def _tensor(name: str, about: Any, file: Path, start: int) -> Tensor:  # Any: a JSON value, checked here
    try:
        code, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _CorruptError(f"corrupt header: {repr(about)[:_LONGEST]}") from error
    if not isinstance(code, str) or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise _CorruptError(f"corrupt header: {repr(about)[:_LONGEST]}")
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
    # The mode reads no tensor, but notes where each storage starts.
    with foreign_errors(_CorruptError, "torch.load cannot read it"), fake_tensor.FakeTensorMode():
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
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
