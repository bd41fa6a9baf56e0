"""Trees in tables: parquet and arrow files, one or a folder of them, as Hugging Face `datasets` writes them.

Arrow files of this machine are mapped into memory. Of parquet, the row groups that were read last are kept: reading in random
order decodes a row group for nearly every record, so that arrow files are better for large data.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.host import storage
from owl3_jax.host.foreign import foreign_errors

_GROUPS_KEPT = 4


class TableError(ValueError):
    """A table that cannot be read; the message names its file."""


class _Part(NamedTuple):
    """Some rows of a table that are read together."""

    location: str
    rows: int
    read: Callable[[], pa.Table]


class TableTrees:
    """`Trees` of table files: each row is an object. A list of messages that a table stores as lists by key is put right."""

    def __init__(self, locations: Sequence[str]) -> None:
        """Reads what the files say about themselves. Raises TableError, or StorageError."""
        self._locations = list(locations)
        self._open()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> object:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[part])
        try:
            with foreign_errors(TableError, f"cannot read row {row} of part {part} of the table {self._parts[part].location}"):
                columns = self._read(part).slice(row, 1).to_pylist()[0]
        except TableError as error:
            raise BadRecord(Problem("malformed", str(error))) from error
        return {name: _by_record(value) for name, value in columns.items()}

    def __getstate__(self) -> list[str]:  # open files stay where they are
        return self._locations

    def __setstate__(self, locations: list[str]) -> None:
        self._locations = locations
        self._open()

    def _open(self) -> None:
        self._parts = [part for location in self._locations for part in _parts(location)]
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])
        self._read = functools.lru_cache(_GROUPS_KEPT)(lambda number: self._parts[number].read())


def _parts(location: str) -> list[_Part]:
    with foreign_errors(TableError, f"cannot read the table {location}"):
        return _arrow_parts(location) if location.endswith(".arrow") else _parquet_parts(location)


def _arrow_parts(location: str) -> list[_Part]:
    source = pa.BufferReader(storage.read_bytes(location)) if storage.is_url(location) else pa.memory_map(location)
    try:
        table = ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:  # the other of Arrow's two layouts, which can be told by its end alone
        source.seek(0)
        table = ipc.open_file(source).read_all()
    return [_Part(location, table.num_rows, lambda: table)]


def _parquet_parts(location: str) -> list[_Part]:
    file = parquet.ParquetFile(storage.open_binary(location) if storage.is_url(location) else location)

    def part(number: int) -> _Part:
        return _Part(location, file.metadata.row_group(number).num_rows, lambda: file.read_row_group(number))

    return [part(number) for number in range(file.num_row_groups)]


def _by_record(value: object) -> object:
    """`{"role": [...], "content": [...]}` as a list of objects: `datasets` stores sequences of objects that way."""
    if isinstance(value, dict) and len(value) > 1 and all(isinstance(column, list) for column in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return value
