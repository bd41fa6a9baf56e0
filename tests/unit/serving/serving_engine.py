"""What the tests of the server's engine share: tiny engines, and listeners that wait for an answer."""

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Sequence

from owl3_jax.config import Form
from owl3_jax.inference.feature_cache import key_of
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Sample
from owl3_jax.serving.engine import Engine
from owl3_jax.serving.generation import Begun, Event, Failure, Generation, Piece, Token, View
from owl3_jax.serving.settings import EngineSettings
from tests.unit.inference.tiny_engine import TOKENIZER, runtime

SMALL = {"max_running": 4, "max_images": 8, "cache_gib": 0.002, "warm_up": False}
LONGEST = 300.0  # seconds until an answer counts as lost; machines stall
_numbers = itertools.count()
_late: list[Event] = []  # events that came after the last one of their answer


@dataclasses.dataclass
class Listening:
    """Collects the events of one answer."""

    request_id: str
    events: list[Event] = dataclasses.field(default_factory=list)
    has_token: threading.Event = dataclasses.field(default_factory=threading.Event)
    is_over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __call__(self, event: Event) -> None:
        if self.is_over.is_set():
            _late.append(event)
        self.events.append(event)
        if isinstance(event, Piece):
            self.has_token.set()
        if isinstance(event, Failure) or (isinstance(event, Piece) and event.finish_reason):
            self.is_over.set()

    def wait(self) -> "Listening":
        assert self.is_over.wait(LONGEST), self.events
        return self

    @property
    def begun(self) -> Begun:
        (begun,) = (event for event in self.wait().events if isinstance(event, Begun))
        return begun

    @property
    def pieces(self) -> list[Piece]:
        return [event for event in self.wait().events if isinstance(event, Piece)]

    @property
    def tokens(self) -> list[Token]:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish_reason(self) -> str | None:
        return self.pieces[-1].finish_reason

    @property
    def failure(self) -> Failure:
        event = self.wait().events[-1]
        assert isinstance(event, Failure), self.events
        return event


@contextlib.contextmanager
def serving(form: Form = "gated", **settings: object) -> Iterator[Engine]:
    """An engine with small pools, of one size for all tests: they share what it compiles."""
    engine = Engine(runtime(form), TOKENIZER, EngineSettings(**SMALL | settings))
    try:
        yield engine
    finally:
        engine.close(timeout=LONGEST)
    assert not _late


def ask(engine: Engine, prompt: Sample, sampling: Sampling, **options: object) -> Listening:
    listening = Listening(f"request-{next(_numbers)}")
    engine.submit(generation(prompt, sampling, request_id=listening.request_id, **options), listening)
    return listening


def generation(prompt: Sample, sampling: Sampling, **options: object) -> Generation:
    views = [View(key_of(pixels), pixels) for pixels in prompt.pixel_values]
    prompt_of = {"input_ids": prompt.input_ids.tolist(), "image_starts": prompt.image_starts.tolist()}
    return Generation(**{"request_id": "", "views": views, "sampling": sampling} | prompt_of | options)


def asked(engine: Engine, prompts: Sequence[Sample], sampling: Sampling) -> list[Listening]:
    """All at once, and the end of all."""
    listening = [ask(engine, prompt, sampling) for prompt in prompts]
    return [each.wait() for each in listening]
