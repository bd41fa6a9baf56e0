"""A JSON-lines file of results, from which a later run resumes: {"id", "answers"} or {"id", "error"} per line."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from owl3_jax.config import JsonTree
from owl3_jax.inference.requests import Failure, Id, Request

Record = JsonTree

_BEGINNING = b'{"id": '
_ADVICE = "remove that line, or write the results to a new file"


class Results:
    """The results that a file holds, and a way to add to them."""

    def __init__(self, path: Path) -> None:
        """Reads `path` if it exists. A last line that was cut off, as by a crash, is removed from it.

        Raises ValueError when a line is not a result, or the file cannot be written: better now than after the first answers.
        """
        _check_writable(path)
        self._path = path
        self._failed: dict[Id, bool] = {}
        data = path.read_bytes() if path.exists() else b""
        *lines, rest = data.split(b"\n")
        self._note([_record(line, f"line {number} of {path}") for number, line in enumerate(lines, start=1)])
        if rest and _is_cut_off(rest):
            os.truncate(path, len(data) - len(rest))
        elif rest:  # the newline alone is missing
            self._note([_record(rest, f"line {len(lines) + 1} of {path}")])
            with path.open("ab") as file:
                file.write(b"\n")

    def __contains__(self, request_id: Id) -> bool:
        """Whether a request has a result, be it an error."""
        return request_id in self._failed

    def waiting(self, requests: Sequence[Request | Failure]) -> list[Request | Failure]:
        """The requests that have no result yet."""
        return [request for request in requests if request.id not in self]

    def records(self) -> Iterator[Record]:
        """All results, read from the file."""
        if self._path.exists():
            with self._path.open("rb") as file:
                yield from map(json.loads, file)

    def answered(self) -> dict[Id, Record]:
        """The results that are not errors, by request, read from the file."""
        return {record["id"]: record for record in self.records() if "answers" in record}

    def failures(self, requests: Sequence[Request | Failure]) -> int:
        """The number of results that are errors."""
        return sum(self._failed.get(request.id, False) for request in requests)

    def append(self, records: Sequence[Record]) -> None:
        """Adds lines to the file, in one write that has reached the disk when this returns."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self._path.open("ab", buffering=0) as file:
            file.write(lines.encode("utf-8", errors="backslashreplace"))
            os.fsync(file.fileno())
        self._note(records)

    def _note(self, records: Sequence[Record]) -> None:
        self._failed |= {record["id"]: "error" in record for record in records}


def _check_writable(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        problem = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise ValueError(f"{problem}: the results would go there; {'move it away' if folder.exists() else 'create it first'}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file for the results")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path} cannot be written; check its permissions")


def _is_cut_off(line: bytes) -> bool:
    """Whether it starts as a result and is incomplete."""
    begins = line.startswith(_BEGINNING) or _BEGINNING.startswith(line)
    try:
        json.loads(line)
    except ValueError:
        return begins
    return False


def _record(line: bytes, name: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{name} is not a result: {error}; {_ADVICE}") from error
    if not isinstance(record, dict) or type(record.get("id")) not in (str, int) or not record.keys() & {"answers", "error"}:
        raise ValueError(f"{name} is not a result; {_ADVICE}")
    return record
