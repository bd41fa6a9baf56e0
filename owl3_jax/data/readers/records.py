"""`Record`: one conversation with its images and videos, whatever it was read from."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from owl3_jax.config import JsonTree
from owl3_jax.processing.chat import Message
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.video import VideoSource

Kind = Literal[
    "malformed",  # not a conversation: no JSON, keys that are missing, values of a wrong type
    "roles",  # unknown, or in a wrong order
    "no-answer",  # an answer that is empty or missing, or none that bears loss
    "placeholders",  # not as many as there are images and videos, or outside the user's text
    "missing-file",  # of an image or a video
    "unreadable-image",
    "unreadable-video",
    "too-long",  # more tokens than a row
    "too-many-images",  # more images than a row
    "duplicate",  # `owl3 data check` alone: a copy of an earlier record, or an image that is held out
]


class Problem(NamedTuple):
    """Why a record cannot be trained on."""

    kind: Kind
    detail: str


class BadRecord(ValueError):
    """A record with problems, at least one; and its media, as far as they are known."""

    def __init__(self, *problems: Problem, images: Sequence[ImageSource] = (), videos: Sequence[VideoSource] = ()) -> None:
        super().__init__("; ".join(problem.detail for problem in problems))
        self.problems, self.images, self.videos = problems, images, videos

    def __reduce__(self) -> tuple[object, tuple[Problem, ...]]:  # other processes raise it
        return functools.partial(BadRecord, images=self.images, videos=self.videos), self.problems


class Record(NamedTuple):
    """One conversation as stored."""

    name: str  # source and index, for messages
    messages: list[Message]
    images: Sequence[ImageSource]  # in text order, as are videos
    videos: Sequence[VideoSource] = ()
    metadata: JsonTree = {}  # noqa: RUF012, nobody changes it: where the sample comes from, for people and tests


@runtime_checkable
class Records(Protocol):
    """Random access to records: the protocol of readers, and what grain takes as a data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record:
        """Raises BadRecord when what is stored there is not a conversation."""


@runtime_checkable
class Trees(Protocol):
    """Random access to records as their format has them: JSON values, whose images may be bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object:
        """Raises BadRecord when what is stored there is damaged."""
