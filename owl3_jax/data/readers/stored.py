"""Records in the form that TFDS builders store: a conversation as JSON, and its images as encoded bytes."""

import itertools
import json
from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

from owl3_jax.data.readers.records import BadRecord, Problem, Record
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.video import VideoSource


class StoredError(ValueError):
    """Stored records that cannot be read; the message names them."""


class StoredRecord(TypedDict):
    """One record, with nothing decoded."""

    messages: str | bytes  # JSON: a list of messages
    images: Sequence[bytes]  # encoded, in text order
    videos: NotRequired[Sequence[bytes]]  # files, or encoded frames one after the other
    frame_counts: NotRequired[Sequence[int]]  # frames of each video; 0: it is a file
    metadata: str | bytes  # JSON: an object


@runtime_checkable
class StoredRecords(Protocol):
    """Stored records by index: read from files, or made when they are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> StoredRecord: ...


class RecordSource:
    """`Records` over stored ones, named after their data set and split."""

    def __init__(self, stored: StoredRecords, name: str) -> None:
        self._stored = stored
        self._name = name

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} records, not one of index {index}")
        name = f"{self._name}[{index}]"
        try:
            with foreign_errors(StoredError, f"cannot read {name}"):
                stored = self._stored[index]
                messages, metadata = json.loads(stored["messages"]), json.loads(stored["metadata"])
        except StoredError as error:
            raise BadRecord(Problem("malformed", str(error))) from error
        return Record(name, messages, list(stored["images"]), _videos(stored), metadata)


def _videos(stored: StoredRecord) -> list[VideoSource]:
    """Files, and lists of frames."""
    stored_parts = stored.get("videos", ())
    parts, counts = iter(stored_parts), stored.get("frame_counts", [0] * len(stored_parts))
    return [list(itertools.islice(parts, count)) if count else next(parts) for count in map(int, counts)]
