"""Records in the form that TFDS builders store: a conversation as JSON, and its images as encoded bytes."""

import json
from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

from owl3_jax.data.readers.records import Record


class StoredRecord(TypedDict):
    """One record, with nothing decoded."""

    messages: str | bytes  # JSON: a list of messages
    images: Sequence[bytes]  # encoded, in text order
    videos: NotRequired[Sequence[bytes]]  # files
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
        stored = self._stored[index]
        messages, metadata = json.loads(stored["messages"]), json.loads(stored["metadata"])
        return Record(f"{self._name}[{index}]", messages, list(stored["images"]), list(stored.get("videos", ())), metadata)
