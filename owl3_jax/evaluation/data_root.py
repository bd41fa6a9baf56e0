"""The files of benchmarks below one folder, here or where fsspec reads: `dataset/...` and `images/...`, as released.

A question names its image by a string, which `DataRoot.image` reads:

    images/gqa/images/1.jpg                              a file, below the root unless it is absolute or a URL
    dataset/ai2d/data/test.parquet#12/image              a column of a row of a table; `image/3` is an entry of its list
    dataset/mmbench/mmbench_dev_en.tsv#241               base64, in the column `image` of the row with this `index`
"""

import base64
import binascii
import csv
import dataclasses
import functools
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc, parquet

from owl3_jax.config import EvalConfig, Json, JsonTree
from owl3_jax.data.readers.records import BadRecord
from owl3_jax.data.readers.tables import TableTrees
from owl3_jax.host import storage
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.images import ImageSource

Row = Mapping[str, Json]  # values of JSON or of a table, or strings
NAME = "#"  # the key of a row's own name, for `DataRoot.media`

_TABLES, _JSON = (".parquet", ".arrow"), (".json", ".jsonl")
_DEPTH = 3  # folders in folders
# Folders without data files; `videomme` is none of them.
_MEDIA = re.compile(r"image|videos?$|NExTVideo|frames|^[.]|subtitle", re.IGNORECASE)
_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLIT = re.compile(r"train|test|val|dev", re.IGNORECASE)
_LONGEST_INDEX = 64  # what is longer in a column of images is an image, and not the index of the row that has it
_ENTRY = re.compile(r"(?P<file>.+\.(?:parquet|arrow|tsv))#(?P<row>[^/]+)(?:/(?P<column>[^/]+))?(?:/(?P<place>\d+))?")


class DataError(ValueError):
    """Files of a benchmark that are missing or damaged; the message names them."""


@dataclasses.dataclass(frozen=True)
class DataRoot:
    """Where benchmarks are, and what is asked of them."""

    root: str = "."
    settings: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def location(self, name: str) -> str:
        """Where a file is, given by its path below the root."""
        return storage.join(self.root, name)

    def find(self, *patterns: str) -> list[str]:
        """The files that match the first of the patterns that any file matches; below the root, sorted."""
        for pattern in patterns:
            if found := self._matching(pattern):
                return found
        return []

    def require(self, *patterns: str) -> list[str]:
        """As `find`. Raises DataError where there is no file."""
        if found := self.find(*patterns):
            return found
        raise DataError(f"there is no {' or '.join(self.location(pattern) for pattern in patterns)}")

    def json(self, *patterns: str) -> Json:
        """The value of a JSON file, the first that is found. Raises DataError."""
        return _read_json(self.location(self.require(*patterns)[0]))

    def rows(self, *patterns: str) -> list[Row]:
        """The rows of a file, the first that is found: JSON (a list), JSON Lines, a table, or tab-separated values.

        Each has its own name under `NAME`; large columns of tables (images) and of tab-separated files are not in it. Raises
        DataError.
        """
        return [row for name in self.require(*patterns) for row in self._rows_of(name)]

    def hub_rows(self, names: Sequence[str], split: str, config: str = "") -> list[Row]:
        """The rows of `hub_files`. Raises DataError where there is none, or one of numbered files is missing."""
        found = self.hub_files(names, split, config)
        if not found:
            what = f"a file of the split {split}{f' of {config}' if config else ''} ({', '.join((*_TABLES, *_JSON))})"
            where = " or ".join(map(self.location, self.folders(*names))) or self.location(f"dataset/{names[0]}")
            raise DataError(f"there is no {where} with {what}")
        return [row for name in found for row in self._rows_of(name)]

    def hub_files(self, names: Sequence[str], split: str, config: str = "") -> list[str]:
        """The files of a data set of the Hugging Face hub, downloaded or saved to a folder below `dataset/`; perhaps none.

        Args:
            names: of the data set's folder, which may be in one of its owner's; case and punctuation do not count.
            split: the split, which is in the names of its files or folders; it may be left out where there is only one.
            config: the configuration: a folder, or the beginning of the names.

        Raises DataError when some of files that are numbered (`-00000-of-00003`) are missing.
        """
        for folder in self.folders(*names):
            files = _data_files(self.location(folder))
            found = [file for file in files if _is_of(file, split, config)]
            if not found and not config and not any(_SPLIT.search(file) for file in files):
                found = list(files)
            if found:
                suffix = min((f".{file.rpartition('.')[2]}" for file in found), key=(*_TABLES, *reversed(_JSON)).index)
                depth = min(file.count("/") for file in found if file.endswith(suffix))
                same = [file for file in found if file.endswith(suffix) and file.count("/") == depth]
                chosen = [file for file in same if file.rpartition("/")[0] == same[0].rpartition("/")[0]]
                _require_all(chosen, self.location(folder))
                return [f"{folder}/{file}" for file in chosen]
        return []

    def folders(self, *names: str) -> list[str]:
        """The folders below `dataset/` or one of its folders with one of the names; case and punctuation do not count."""
        wanted = {_plain(name) for name in names}
        found = self._matching_folders("dataset/*") + self._matching_folders("dataset/*/*")
        return [folder for folder in found if _plain(folder.rpartition("/")[2]) in wanted]

    def text(self, name: str) -> str:
        """The content of a file in UTF-8. Raises DataError."""
        return _text(self.location(name))

    def media(self, row: Row, column: str) -> str:
        """The name of a row's image or video: a file that the row names, or its entry in a table."""
        value = row.get(column)
        if isinstance(value, str):
            return value if value.startswith(("images/", "dataset/")) else storage.join(storage.parent(row[NAME]), value)
        return f"{row[NAME]}/{column}"

    def image(self, name: str) -> ImageSource:
        """The image of a name, not decoded. Raises DataError."""
        entry = _ENTRY.fullmatch(name)
        if entry is None:
            return self.file(name)
        location = self.location(entry["file"])
        if location.endswith(".tsv"):
            return _tsv_image(location, entry["row"])
        return _table_image(location, int(entry["row"]), entry["column"] or "image", entry["place"])

    def file(self, name: str) -> Path | bytes:
        """A file or folder that a row names: its path, or what is stored at its URL; of a folder, a copy. Raises DataError."""
        location = self.location(name)
        if not storage.is_url(location):
            return Path(location)
        return Path(_copy(location).name) if storage.is_folder(location) else _read(location)

    def _matching(self, pattern: str) -> list[str]:
        location = self.location(pattern)
        if not re.search(r"[*?\[]", pattern):
            return [pattern] if storage.exists(location) and not storage.is_folder(location) else []
        prefix = len(self.location("x")) - 1
        return [found[prefix:] for found in storage.find(location)]

    def _matching_folders(self, pattern: str) -> list[str]:
        prefix = len(self.location("x")) - 1
        return [found[prefix:] for found in storage.find(self.location(pattern)) if storage.is_folder(found)]

    def _rows_of(self, name: str) -> Iterator[Row]:
        location = self.location(name)
        if name.endswith(_TABLES):
            yield from ({**row, NAME: f"{name}#{number}"} for number, row in enumerate(_table_rows(location)))
        elif name.endswith(".tsv"):
            rows = read_tsv(location)
            first = {row["image"]: row["index"] for row in reversed(rows)}  # equal images have one name
            yield from ({**row, NAME: f"{name}#{first[row['image']]}"} for row in rows)
        else:
            yield from ({**row, NAME: f"{name}#{number}"} for number, row in enumerate(_json_rows(location)))


def hub_files(names: Sequence[str], split: str, config: str = "") -> str:
    """What `About.needs` says of `DataRoot.hub_rows`."""
    return f"dataset/{names[0]}/{f'{config}/' if config else '**/'}{split}*"


def read_tsv(location: str) -> list[Row]:
    """The rows of a tab-separated file, in which `image` is a number: equal images have equal ones. Raises DataError."""
    return list(_read_tsv(location)[0])


@functools.lru_cache(16)
def _data_files(folder: str) -> tuple[str, ...]:
    """The tables and JSON files of a folder and of folders in it, by path; folders of images and videos are not looked into."""
    found, waiting = [], [("", 0)]
    while waiting:
        inside, depth = waiting.pop()
        for place in storage.children(f"{folder}/{inside}"):
            name = place.name
            if place.is_folder and depth < _DEPTH and not _MEDIA.search(name):
                waiting.append((f"{inside}{name}/", depth + 1))
            elif not place.is_folder and name.endswith((*_TABLES, *_JSON)) and name not in _ABOUT_DATA:
                found.append(f"{inside}{name}")
    return tuple(sorted(found))


def _is_of(file: str, split: str, config: str) -> bool:
    """Whether a file, by its path within a data set, is of a split and configuration."""
    *folders, name = file.split("/")
    stem = name.rpartition(".")[0]
    in_split = re.search(rf"(?:^|-){re.escape(split)}(?:-|\.|$)", stem) is not None or split in folders
    if not config:
        return in_split
    return stem == config or (in_split and (config in folders or stem.startswith(f"{config}-")))


def _require_all(files: Sequence[str], folder: str) -> None:
    numbered = [match for file in files if (match := re.search(r"-(\d+)-of-(\d+)\.", file))]
    if not numbered:
        return
    missing = sorted(set(range(int(numbered[0][2]))) - {int(match[1]) for match in numbered})
    if missing:
        raise DataError(f"{folder}/{files[0]} is one of {int(numbered[0][2])} files; number {missing[0]} is missing")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read(location: str) -> bytes:
    with foreign_errors(DataError, f"cannot read {location}"):
        return storage.read_bytes(location)


@functools.lru_cache(64)
def _copy(folder: str) -> tempfile.TemporaryDirectory[str]:
    """The files of a folder at a URL, on this machine until they are forgotten."""
    copy = tempfile.TemporaryDirectory(prefix="owl3-frames-")
    for place in storage.children(folder):
        if not place.is_folder:
            (Path(copy.name) / place.name).write_bytes(_read(storage.join(folder, place.name)))
    return copy


def _text(location: str) -> str:
    with foreign_errors(DataError, f"{location} is not in UTF-8"):
        return _read(location).decode("utf-8-sig")


def _read_json(location: str) -> Json:
    with foreign_errors(DataError, f"{location} is not valid JSON"):
        return json.loads(_text(location))


def _json_rows(location: str) -> list[Row]:
    """The objects of a list, or of the lines of a file; a suffix says nothing about which it is."""
    text = _text(location)
    if text.lstrip()[:1] == "[":
        rows = _read_json(location)
    else:
        with foreign_errors(DataError, f"{location} is not JSON Lines"):
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"row {number} of {location} is not an object: {str(row)[:40]}")
    return list(rows)


@functools.lru_cache(8)
def _table(location: str) -> TableTrees:
    with foreign_errors(DataError, f"cannot read the table {location}"):
        return TableTrees([location])


def _table_rows(location: str) -> list[Row]:
    """All rows of a table, without the columns that hold encoded images."""
    with foreign_errors(DataError, f"cannot read the table {location}"):
        # Any: pyarrow has no types
        content: Any = pa.BufferReader(_read(location)) if storage.is_url(location) else pa.memory_map(location)
        if location.endswith(".parquet"):
            light = [field.name for field in parquet.read_schema(content) if not _is_heavy(field.type)]
            content.seek(0)
            table = parquet.read_table(content, columns=light)
        else:
            table = _arrow_table(content)
            table = table.select([field.name for field in table.schema if not _is_heavy(field.type)])
        return list(table.to_pylist())


def _arrow_table(content: Any) -> pa.Table:  # Any: pyarrow has no types
    try:
        return ipc.open_stream(content).read_all()
    except pa.ArrowInvalid:  # the other of Arrow's two layouts
        content.seek(0)
        return ipc.open_file(content).read_all()


def _is_heavy(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_heavy(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_is_heavy(kind.field(number).type) for number in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _table_image(location: str, row: int, column: str, place: str | None) -> ImageSource:
    try:
        columns: Json = _table(location)[row]
        value = columns[column] if place is None else columns[column][int(place)]
    except (BadRecord, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{location} has no image in column {column} of row {row}: {error}") from error
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        beside = storage.join(storage.parent(location), value)
        return _read(beside) if storage.is_url(beside) else Path(beside)
    if not isinstance(value, bytes):
        raise DataError(f"{location} has no image in column {column} of row {row}, but {str(value)[:40]}")
    return value


def _tsv_image(location: str, index: str) -> bytes:
    rows, images = _read_tsv(location)
    numbers = _tsv_numbers(location)
    if index not in numbers:
        raise DataError(f"{location} has no row with the index {index}")
    try:
        return base64.b64decode(images[int(rows[numbers[index]]["image"])], validate=False)
    except binascii.Error as error:
        raise DataError(f"the image of the row with the index {index} of {location} is not base64: {error}") from error


@functools.lru_cache(4)
def _tsv_numbers(location: str) -> dict[str, int]:
    return {str(row["index"]): number for number, row in enumerate(read_tsv(location))}


@functools.lru_cache(4)
def _read_tsv(location: str) -> tuple[list[JsonTree], list[str]]:
    """The rows, and the different images that `image` numbers: circular copies repeat them, or name the row that has it."""
    csv.field_size_limit(2**31 - 1)
    with foreign_errors(DataError, f"cannot read the rows of {location}"):
        rows: list[JsonTree] = list(csv.DictReader(io.StringIO(_text(location), newline=""), delimiter="\t"))
    for number, row in enumerate(rows):
        if None in row or None in row.values() or not row.get("index"):
            raise DataError(f"row {number} of {location} does not have the columns of its first line, or no `index`")
    if rows and "image" not in rows[0]:
        raise DataError(f"{location} has no column `image`; it has {', '.join(map(str, rows[0]))}")
    if len({row["index"] for row in rows}) < len(rows):
        raise DataError(f"{location} has several rows with the same `index`")
    own = {row["index"]: row.get("image", "") for row in rows}
    images: dict[str, int] = {}
    for row in rows:
        image = own[row["index"]]
        if len(image) < _LONGEST_INDEX and image in own:
            image = own[image]
        row["image"] = images.setdefault(image, len(images))
    return rows, list(images)
