"""`Record`: one conversation with its images, whatever it was read from."""

from typing import NamedTuple, Protocol, runtime_checkable

from owl3_jax.config import JsonTree
from owl3_jax.processing.chat import Message


class Record(NamedTuple):
    """One conversation as stored."""

    name: str  # data set, split and index, for messages
    messages: list[Message]
    images: list[bytes]  # encoded, in text order
    metadata: JsonTree  # where the sample comes from, for people and tests


@runtime_checkable
class Records(Protocol):
    """Random access to records: the protocol of readers, and what grain takes as a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...
