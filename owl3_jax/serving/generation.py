"""What the HTTP side hands to the engine, and what the engine hands back."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from owl3_jax.inference.sampling import Sampling

TOP_LOGPROBS = 20  # most alternatives that are reported for each token


@dataclasses.dataclass(frozen=True)
class View:
    """An image as the vision tower takes it: a picture, a crop of one, or a frame of a video."""

    key: bytes  # of its content, `owl3_jax.inference.feature_cache.key_of`
    pixels: UInt8[np.ndarray, "S S 3"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer that is wanted. Several answers to a prompt (`n`) are several of these; they share pages."""

    request_id: str  # unique
    input_ids: Sequence[int]
    image_starts: Sequence[int]  # index of the first token of each placeholder
    views: Sequence[View]  # one for each of them
    sampling: Sampling  # with `n` and `num_beams` 1
    sample: int = 0  # its number among the answers to its prompt: they draw differently
    presence_penalty: float = 0.0  # taken off the logits of tokens in the answer
    frequency_penalty: float = 0.0  # the same, for each time that a token is there
    top_logprobs: int = 0  # alternatives reported for each token, with `sampling.logprobs`
    client: str = ""  # whose it is: one's requests share the time that is his
    priority: int = 0  # smaller goes first


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of an answer. Log-probabilities are those of the model alone, in nats."""

    id: int
    logprob: float | None = None  # with `sampling.logprobs`
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


@dataclasses.dataclass(frozen=True)
class Begun:
    """The first event: the prompt has been read."""

    cached_tokens: int  # of the prompt, whose keys and values were there already
    cached_images: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """More of an answer. All pieces' texts joined are its text; it never splits a character."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: Literal["stop", "length"] | None = None  # in the last piece


@dataclasses.dataclass(frozen=True)
class Failure:
    """The last event of an answer that failed, by its own fault (a 4xx) or the server's (a 5xx)."""

    status: int
    code: str
    message: str  # for the client: names no address, path or library


Event = Begun | Piece | Failure
Listener = Callable[[Event], None]  # called on the engine's thread: it must return at once, and raise nothing


class QueueFullError(RuntimeError):
    """As many requests wait as may wait."""

    def __init__(self, retry_after: float) -> None:
        """`retry_after`: seconds until there is likely to be room."""
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class EngineClosedError(RuntimeError):
    """The engine is ending, and takes no requests any more."""


class TooLargeError(ValueError):
    """A request that this server could not answer even if it had nothing else to do; the message says why."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Of the engine, now or since it started."""

    waiting: int  # requests
    running: int
    pages_free: int  # of images
    pages_idle: int
    pages_used: int
    pages_shared: int
    pages_evicted: int
    text_pages_free: int
    text_pages_idle: int
    text_pages_used: int
    images_encoded: int  # by the vision tower
    tokens_generated: int


@runtime_checkable
class ServingEngine(Protocol):
    """The engine, as the HTTP side knows it. All methods may be called from any thread."""

    @property
    def is_ready(self) -> bool:
        """Whether all programs are compiled, and new requests are taken."""

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself: nothing will ever be answered."""

    def submit(self, generation: Generation, listener: Listener) -> None:
        """Queues an answer, whose events go to `listener`: `Begun`, `Piece`s, or a `Failure` at any time.

        Raises QueueFullError, TooLargeError or EngineClosedError.
        """

    def cancel(self, request_id: str) -> None:
        """Ends an answer, without further events; frees all that it held. Unknown ones are ignored."""

    def load(self) -> Load:
        """The numbers of /metrics."""

    def close(self, timeout: float) -> None:
        """Takes no more requests, finishes those under way, and ends; after `timeout` seconds with a `Failure` for the rest."""
