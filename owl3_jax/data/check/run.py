"""Checks all records of some sources, in several processes; what is done is kept in a file, so that a stopped check goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from owl3_jax.data.check.record import Checked, Checker
from owl3_jax.data.readers.records import Problem
from owl3_jax.data.sources import fingerprint
from owl3_jax.host.files import write_text
from owl3_jax.host.workers import WorkerDiedError, map_in_processes

_CHUNK = 32  # records that a process checks at a time
_FEW = 256  # records that are not worth starting processes for


class CheckError(RuntimeError):
    """A check that cannot be finished; the message says why."""


class _Chunk(NamedTuple):
    """Some records of a source."""

    source: int
    start: int
    stop: int


def check_records(
    checkers: Sequence[Checker], journal: Path, workers: int, advance: Callable[[int], object]
) -> list[list[Checked]]:
    """What was found out about each record of each source.

    Args:
        checkers: one a source.
        journal: a file that is written as the check goes on and removed at its end; a check of the same sources that finds it
            continues where the other one was stopped.
        workers: processes.
        advance: called with the number of records that are done, those of the journal at once.

    Raises CheckError when a process dies.
    """
    found: list[list[Checked | None]] = [[None] * len(checker.records) for checker in checkers]
    with _Journal(journal, _fingerprint(checkers)) as written:
        for chunk, results in written.earlier:
            found[chunk.source][chunk.start : chunk.stop] = results
            advance(len(results))
        chunks = [chunk for chunk in _chunks(checkers) if found[chunk.source][chunk.start] is None]
        few = len(chunks) * _CHUNK <= _FEW
        for chunk, results in _naming(map_in_processes(_CheckChunk(list(checkers)), chunks, 1 if few else workers)):
            found[chunk.source][chunk.start : chunk.stop] = results
            written.add(chunk, results)
            advance(len(results))
    journal.unlink()
    return [[checked for checked in each if checked is not None] for each in found]


def _chunks(checkers: Sequence[Checker]) -> Iterator[_Chunk]:
    for number, checker in enumerate(checkers):
        for start in range(0, len(checker.records), _CHUNK):
            yield _Chunk(number, start, min(start + _CHUNK, len(checker.records)))


def _naming(results: Iterator[tuple[_Chunk, list[Checked]]]) -> Iterator[tuple[_Chunk, list[Checked]]]:
    try:
        yield from results
    except WorkerDiedError as error:
        raise CheckError(
            f"{error}; the same command goes on where it stopped, and --workers 1 shows which record it is"
        ) from error


@dataclasses.dataclass(frozen=True)
class _CheckChunk:
    """Checks the records of a chunk. It can be sent to other processes."""

    checkers: Sequence[Checker]

    def __call__(self, chunk: _Chunk) -> list[Checked]:
        return [self.checkers[chunk.source](index) for index in range(chunk.start, chunk.stop)]


class _Journal:
    """Results as lines of JSON after a line with the fingerprint of what is checked. A context manager."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.earlier = _read_journal(path, fingerprint)
        lines = [json.dumps(fingerprint), *map(json.dumps, self.earlier)]
        write_text(path, "".join(f"{line}\n" for line in lines))  # without a line that was cut off
        self._file = path.open("a")

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, chunk: _Chunk, results: Sequence[Checked]) -> None:
        """Appends the results of a chunk, which a later check will find at once."""
        self._file.write(json.dumps([chunk, results]) + "\n")
        self._file.flush()


def _read_journal(path: Path, fingerprint: str) -> list[tuple[_Chunk, list[Checked]]]:
    """What an earlier check of the same left; a line that a kill cut off counts for nothing."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if not lines or lines[0].strip() != json.dumps(fingerprint):
        return []
    whole = [json.loads(line) for line in lines[1:] if line.endswith("\n")]
    return [(_Chunk(*chunk), [_as_checked(result) for result in results]) for chunk, results in whole]


def _as_checked(result: list[object]) -> Checked:
    problems, *numbers, images = result
    return Checked([Problem(*problem) for problem in problems], *numbers, image_digests=tuple(images))  # type: ignore


def _fingerprint(checkers: Sequence[Checker]) -> str:
    """Of all that results depend on, but the media."""
    described = [
        (repr(checker.config), repr(checker.source), len(checker.records), fingerprint(checker.source), _settings(checker))
        for checker in checkers
    ]
    return hashlib.sha256(repr(described).encode()).hexdigest()


def _settings(checker: Checker) -> str:
    processor = checker.processor
    fields = (processor.image_size, processor.style, processor.media_style, processor.crop, processor.video_sampling)
    return repr((fields, processor.tokenizer.to_json()))
