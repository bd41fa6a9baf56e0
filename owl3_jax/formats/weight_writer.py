"""Writes safetensors files tensor by tensor, in any order, so that no file is ever held in memory."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from owl3_jax.config import JsonTree
from owl3_jax.formats.weight_files import DTYPES, SAFETENSORS_INDEX

MAX_SHARD_BYTES = 5 * 10**9  # of one file


class TensorSpec(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightWriter:
    """The files `STEM.safetensors`, or `STEM-00001-of-0000N.safetensors` with an index, of tensors declared at the start.

    Args:
        directory: exists.
        specs: all tensors that will be written; they go to files in the order of their names.
        stem: of the files' names.
        max_shard_bytes: a file gets no more, unless one tensor has more.
    """

    def __init__(
        self, directory: Path, specs: Iterable[TensorSpec], *, stem: str = "model", max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        shards = _shards(sorted(specs, key=_by_number), max_shard_bytes)
        self._places: dict[str, tuple[Path, int, TensorSpec]] = {}
        for number, shard in enumerate(shards, start=1):
            part = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            self._lay_out(directory / f"{stem}{part}.safetensors", shard)
        if len(shards) > 1:
            self._write_index(directory / SAFETENSORS_INDEX)

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Writes one tensor to its place.

        Raises ValueError when its dtype or shape is not as declared.
        """
        file, offset, spec = self._places[name]
        if (tensor.dtype, tensor.shape) != (spec.dtype, spec.shape):
            raise ValueError(f"{name} was declared as {spec.dtype} {spec.shape}, got {tensor.dtype} {tensor.shape}")
        with file.open("r+b") as stream:
            stream.seek(offset)
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)

    def _lay_out(self, file: Path, shard: list[TensorSpec]) -> None:
        """Writes the header and makes room for the data."""
        header: JsonTree = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
        ends = np.cumsum([0, *(spec.nbytes for spec in shard)]).tolist()
        for spec, begin, end in zip(shard, ends[:-1], ends[1:], strict=True):
            header[spec.name] = {"dtype": _code(spec.dtype), "shape": spec.shape, "data_offsets": [begin, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)  # so that the data is aligned
        start = 8 + len(encoded)
        with file.open("wb") as stream:
            stream.write(len(encoded).to_bytes(8, "little") + encoded)
            stream.truncate(start + ends[-1])
        self._places |= {spec.name: (file, start + begin, spec) for spec, begin in zip(shard, ends[:-1], strict=True)}

    def _write_index(self, path: Path) -> None:
        size = sum(spec.nbytes for _, _, spec in self._places.values())
        weight_map = {name: file.name for name, (file, _, _) in self._places.items()}
        path.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2) + "\n")


def _by_number(spec: TensorSpec) -> list[str]:
    """Sorts layers.2 before layers.10."""
    return [part.zfill(6) for part in re.split(r"(\d+)", spec.name)]


def _shards(specs: Iterable[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + spec.nbytes > limit:
            shards.append([])
        shards[-1].append(spec)
    return shards


def _code(dtype: np.dtype) -> str:
    return next(code for code, known in DTYPES.items() if known == dtype)
