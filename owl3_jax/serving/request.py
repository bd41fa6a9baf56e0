"""A request inside the engine: how far its prompt has been read, and its answer so far."""

import dataclasses
import functools
import reprlib
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import jax
import numpy as np
from jaxtyping import Int32, UInt8, UInt32

from owl3_jax.inference.sampling import Sampling
from owl3_jax.inference.text_stream import TextStream
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.serving.generation import Begun, Event, Failure, Generation, Listener, Piece, Token
from owl3_jax.serving.logs import LOGGER
from owl3_jax.serving.pools import Loan

HeldPixels = WeakValueDictionary[bytes, UInt8[np.ndarray, "S S 3"]]

_NO_PIXELS: UInt8[np.ndarray, "0 0 3"] = np.zeros((0, 0, 3), np.uint8)


class TableRow(NamedTuple):
    """A request's row in the tables of pages, padded."""

    text: Int32[np.ndarray, " S"]
    images: Int32[np.ndarray, " I"]
    positions: Int32[np.ndarray, " I"]
    shown: int  # images


@dataclasses.dataclass(eq=False)
class Request:
    """One answer in the making."""

    generation: Generation
    listener: Listener
    stream: TextStream
    limit: int  # tokens of the answer
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    finish: float = 0.0  # by which the queue ranks it
    is_cancelled: bool = False  # nobody listens any more
    loan: Loan | None = None
    read: int = 0  # tokens of prompt and answer whose keys and values are written
    cached_tokens: int = 0
    cached_images: int | None = None  # until it has pages
    ids: list[int] = dataclasses.field(default_factory=list)  # of the answer
    pixels: dict[bytes, UInt8[np.ndarray, "S S 3"]] = dataclasses.field(default_factory=dict)  # until they are encoded
    _last: Piece | None = None  # of a complete answer
    _was_read: int = 0  # tokens, before it had to give its pages back
    _tables: dict[tuple[int, int], TableRow] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, generation: Generation, listener: Listener, tokenizer: ChatTokenizer, limit: int, held: HeldPixels
    ) -> "Request":
        """A request that has just arrived. `held`: what requests hold that have not been read; what it shares is held once."""
        pixels = {view.key: held.setdefault(view.key, view.pixels) for view in generation.views}
        keys = [dataclasses.replace(view, pixels=_NO_PIXELS) for view in generation.views]
        light = dataclasses.replace(generation, views=keys, input_ids=list(generation.input_ids))
        return cls(light, listener, TextStream(tokenizer, generation.sampling.stop), limit, pixels=pixels)

    @property
    def sampling(self) -> Sampling:
        """How its tokens are chosen."""
        return self.generation.sampling

    @functools.cached_property
    def prompt(self) -> list[int]:
        """Its tokens."""
        return list(self.generation.input_ids)

    @functools.cached_property
    def image_keys(self) -> list[bytes]:
        """Of its images, in order."""
        return [view.key for view in self.generation.views]

    @property
    def rank(self) -> tuple[int, float]:
        """Its place among those that wait and those that are being read: smaller comes first."""
        return self.generation.priority, self.finish

    def enter(self, loan: Loan, cached_images: int) -> None:
        """Has pages, of which some hold their image already."""
        self.loan = loan
        if self.cached_images is None:  # later on, what is there may be its own work
            self.cached_images = cached_images

    def leave(self) -> Loan | None:
        """Gives the pages back, and begins anew when there are others."""
        loan, self.loan = self.loan, None
        self._was_read, self.read = max(self._was_read, self.read), 0
        self._tables.clear()
        return loan

    def skip(self, tokens: int) -> None:
        """So many further tokens are there already."""
        self.cached_tokens += max(0, self.read + tokens - max(self.read, self._was_read))
        self.read += tokens

    def table(self, text: int, images: int) -> TableRow:
        """Its row in tables of so many pages of text and images."""
        if self.loan is None:
            raise ValueError("the request has no pages yet")
        if (text, images) not in self._tables:
            starts = self.generation.image_starts
            row = _padded(self.loan.text, text), _padded(self.loan.images, images), _padded(starts, images)
            self._tables[text, images] = TableRow(*row, len(self.loan.images))
        return self._tables[text, images]

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.read >= len(self.prompt)

    @functools.cached_property
    def draws(self) -> UInt32[np.ndarray, "2"]:
        """The key of its random numbers: of its seed, and its number among the answers to the prompt."""
        key = jax.random.fold_in(jax.random.key(self.sampling.seed, impl="threefry2x32"), self.generation.sample)
        return np.asarray(jax.random.key_data(key))

    def begin(self) -> None:
        """Says that the prompt has been read."""
        self.pixels.clear()
        self._tell(Begun(self.cached_tokens, self.cached_images or 0))

    def push(self, token: Token, stop_ids: Sequence[int]) -> bool:
        """Adds a token of the answer; returns whether the answer is complete, which `end` says. Else its text is sent."""
        self.ids.append(token.id)
        is_stop_id = token.id in stop_ids
        text = "" if is_stop_id else self.stream.push([token.id])
        if is_stop_id or self.stream.stopped or len(self.ids) >= self.limit:
            reason: Literal["stop", "length"] = "stop" if is_stop_id or self.stream.stopped else "length"
            self._last = Piece(text + self.stream.finish(), (token,), reason)
            return True
        self._tell(Piece(text, (token,)))
        return False

    def end(self) -> None:
        """Sends the end of a complete answer, once its pages are free."""
        if self._last is not None:
            self._tell(self._last)

    def fail(self, status: int, code: str, message: str) -> None:
        """Ends it with an error."""
        self._tell(Failure(status, code, message))

    def _tell(self, event: Event) -> None:
        if self.is_cancelled:
            return
        try:
            self.listener(event)
        except Exception:  # whoever listens to one answer must not end those of others
            LOGGER.exception("a listener failed")


def check_generation(generation: Generation, side: int) -> None:
    """Raises ValueError for images that are not described well: later on they would cost others their answers too."""
    starts, tokens = list(generation.image_starts), len(generation.input_ids)
    if len(starts) != len(generation.views):
        raise ValueError(f"there are {len(generation.views)} views for {len(starts)} image_starts")
    if starts != sorted(starts) or any(not 0 <= start < tokens for start in starts):
        raise ValueError(f"image_starts must ascend within the {tokens} tokens of the prompt, got {reprlib.repr(starts)}")
    shape = (side, side, 3)
    for view in generation.views:
        if view.pixels.shape != shape or view.pixels.dtype != np.uint8:
            raise ValueError(f"views must be uint8 {list(shape)}, got {view.pixels.dtype} {list(view.pixels.shape)}")


def _padded(values: Sequence[int], size: int) -> Int32[np.ndarray, " size"]:
    padded = np.zeros(size, np.int32)
    padded[: len(values)] = values
    return padded
