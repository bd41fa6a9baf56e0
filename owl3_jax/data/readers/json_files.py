"""Trees in JSON: a file with one on each line, or with a list of them. Only where each one is is kept in memory."""

import json
import re

import numpy as np
from jaxtyping import Int64

from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.host import storage

_BOM = b"\xef\xbb\xbf"
_SEPARATOR = re.compile(r"[\s,]*")

Spans = Int64[np.ndarray, "n 2"]  # first byte of each tree, and the byte after it


class JsonFileError(ValueError):
    """A JSON file that as a whole is none; the message names it."""


class JsonTrees:
    """`Trees` of a file: JSON Lines, or a list. Blank lines count for nothing."""

    def __init__(self, location: str) -> None:
        """Looks for the records, which are parsed when they are asked for.

        Raises:
            StorageError: the file cannot be read.
            JsonFileError: it is a list, but not of valid JSON, or not in UTF-8.
        """
        self._location = location
        content = storage.read_bytes(location)
        is_list = content.removeprefix(_BOM).lstrip()[:1] == b"["
        self._spans = _list_spans(content, location) if is_list else _line_spans(content)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> object:
        start, end = map(int, self._spans[index])
        with storage.open_binary(self._location) as file:
            file.seek(start)
            encoded = file.read(end - start)
        try:
            return json.loads(encoded)
        except (ValueError, RecursionError) as error:  # ValueError: of JSON and of UTF-8
            raise BadRecord(Problem("malformed", f"it is not valid JSON: {error}")) from error


def _line_spans(content: bytes) -> Spans:
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    starts = np.concatenate([[0], ends + 1])
    ends = np.concatenate([ends, [len(content)]])
    if content.startswith(_BOM):
        starts[0] = len(_BOM)
    filled = [bool(content[start:end].strip()) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.stack([starts, ends], 1)[np.array(filled, bool)].astype(np.int64)


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
                return np.array(spans, np.int64).reshape(-1, 2)
            _, end = decoder.raw_decode(text, place)
            at += len(text[counted:place].encode())
            length = len(text[place:end].encode())
            spans.append((at, at + length))
            at, counted, place = at + length, end, end
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"{location} is not a valid JSON list: {error}") from error
