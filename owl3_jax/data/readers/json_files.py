"""Trees in JSON: files with one on each line, or with a list of them. Only where each one is is kept in memory."""

import json
import os
import re
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.host import storage

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16; the first one begins that of UTF-32, too
_SEPARATOR = re.compile(r"[\s,]*")

Spans = Int64[np.ndarray, "n 2"]  # first byte of each tree, and the byte after it


class JsonFileError(ValueError):
    """A JSON file that as a whole is none; the message names it."""


class JsonTrees:
    """`Trees` of files, one after the other: JSON Lines, or lists. Blank lines count for nothing."""

    def __init__(self, locations: Sequence[str]) -> None:
        """Looks for the records, which are parsed when they are asked for.

        Raises:
            StorageError: a file cannot be read.
            JsonFileError: it is a list, but not of valid JSON; or it is not in UTF-8.
        """
        self._locations = list(locations)
        spans = [_spans(location) for location in locations]
        self._spans = np.concatenate(spans)
        self._files = np.repeat(np.arange(len(spans)), [len(each) for each in spans])
        self._opened: dict[str, BufferedReader] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> object:
        start, end = map(int, self._spans[index])
        return parse_tree(self._read(self._locations[self._files[index]], start, end), "it")

    def _read(self, location: str, start: int, end: int) -> bytes:
        if storage.is_url(location):
            with storage.open_binary(location) as stored:
                stored.seek(start)
                return stored.read(end - start)
        file = self._opened.get(location)
        if file is None:  # opened once: that takes longer than to read a record
            file = self._opened.setdefault(location, Path(location).open("rb"))  # noqa: SIM115, closed with this object
        return os.pread(file.fileno(), end - start, start)  # other threads read there too

    def __getstate__(self) -> dict[str, object]:  # other processes open the files themselves
        return self.__dict__ | {"_opened": {}}


def parse_tree(encoded: bytes, name: str) -> object:
    """The JSON value of a record. Raises BadRecord, whose message calls it `name`."""
    try:
        return json.loads(encoded)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON and of UTF-8
        raise BadRecord(Problem("malformed", f"{name} is not valid JSON: {error}")) from error


def _spans(location: str) -> Spans:
    content = storage.read_bytes(location)
    if content.startswith(_WIDE_BOMS):
        raise JsonFileError(f"{location} is in UTF-16 or UTF-32; save it as UTF-8")
    is_list = content.removeprefix(_BOM).lstrip()[:1] == b"["
    return _list_spans(content, location) if is_list else _line_spans(content, location)


def _line_spans(content: bytes, location: str) -> Spans:
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    starts = np.concatenate([[0], ends + 1])
    ends = np.concatenate([ends, [len(content)]])
    if content.startswith(_BOM):
        starts[0] = len(_BOM)
    filled = [bool(content[start:end].strip()) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    spans = np.stack([starts, ends], 1)[np.array(filled, bool)].astype(np.int64)
    if len(spans) and not _is_json(content[slice(*spans[0].tolist())]):
        if b"\n" not in content and b"\r" in content.strip():
            raise JsonFileError(f"the lines of {location} end with CR alone; save it with LF or CR LF")
        if len(spans) > 1 and _is_json(content):
            raise JsonFileError(
                f"{location} is one JSON object over several lines; write a list of records, or one on each line"
            )
    return spans


def _is_json(encoded: bytes) -> bool:
    try:
        json.loads(encoded)
    except (ValueError, RecursionError):
        return False
    return True


def _list_spans(content: bytes, location: str) -> Spans:
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
        spans: list[tuple[int, int]] = []
        decoder = json.JSONDecoder()
        place = text.index("[") + 1
        at, counted = len(content) - len(content.removeprefix(_BOM)), 0  # bytes of the text before `counted`
        while True:
            place = _SEPARATOR.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
            if text[place : place + 1] == "]":
                rest = text[place + 1 :].lstrip()
                if rest:
                    raise ValueError(f"its list ends before {rest[:20]!r}, at character {len(text) - len(rest)}")
                return np.array(spans, np.int64).reshape(-1, 2)
            _, end = decoder.raw_decode(text, place)
            at += len(text[counted:place].encode())
            length = len(text[place:end].encode())
            spans.append((at, at + length))
            at, counted, place = at + length, end, end
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"{location} is not a valid JSON list: {error}") from error
