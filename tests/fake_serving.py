"""A server whose engine, fetcher and decoders are simple enough to know every answer: each prompt is answered with itself."""

import asyncio
import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.api_settings import ApiSettings
from owl3_jax.serving.app import make_app
from owl3_jax.serving.auth import ApiKeys
from owl3_jax.serving.budget import Charge
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.generation import (
    Begun,
    Failure,
    Generation,
    Listener,
    Load,
    Piece,
    QueueFullError,
    Token,
    TooLargeError,
    View,
)
from owl3_jax.serving.server import ServerLimits, listen, run_server

MODEL = "echo"
DEFAULTS = Sampling(max_new_tokens=100)
_PATIENCE = 60.0  # seconds: far beyond what anything here takes


class Bytes:
    """Tokens are bytes."""

    def __getitem__(self, token: int) -> bytes:
        return bytes([token])


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What `FakeDecoders` makes."""

    input_ids: Sequence[int]
    image_starts: Sequence[int]
    views: Sequence[View]


class RefusedError(ValueError):
    """As the fetcher and the decoders raise it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Held:
    """Something that goes on until it is let go, and tells what became of it. For any thread."""

    def __init__(self) -> None:
        self.is_there, self.is_gone = threading.Event(), threading.Event()

    def wait_until_there(self) -> None:
        assert self.is_there.wait(_PATIENCE)

    def wait_until_gone(self) -> None:
        assert self.is_gone.wait(_PATIENCE)


class FakeFetcher:
    """`data:` URIs hold their own text. `fake:hold` waits for ever, `fake:refuse` is refused, `fake:crash` is a mistake."""

    def __init__(self) -> None:
        self.fetched: list[tuple[str, str]] = []
        self.held = Held()

    async def fetch(self, url: str, kind: str, charge: Charge) -> bytes:
        self.fetched.append((url, kind))
        if url == "fake:hold":
            self.held.is_there.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.held.is_gone.set()
        if url == "fake:refuse":
            raise RefusedError("media_refused", "this server fetches nothing from the web")
        if url == "fake:crash":
            raise ValueError("secret: at 0xdeadbeef")
        content = url.partition(",")[2].encode()
        charge(len(content))
        return content


class FakeDecoders:
    """A prompt's tokens are the bytes of its last message's text, an image being `#` and a video `%`."""

    def __init__(self) -> None:
        self.messages: list[Sequence[Mapping[str, object]]] = []
        self.held = Held()

    async def decode(self, messages: Sequence[Mapping[str, object]], client: str) -> Prompt:
        self.messages.append(messages)
        content = messages[-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        assert isinstance(parts, list)
        text = "".join({"text": part.get("text"), "image": "#", "video": "%"}[part["type"]] for part in parts)
        if text == "!decode":
            raise RefusedError("unreadable_image", "image 1 is damaged")
        if text == "!unavailable":
            raise RefusedError("decoder_unavailable", "the server is stopping")
        if text == "!decoding":
            self.held.is_there.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.held.is_gone.set()
        views = [View(b"", np.zeros((2, 2, 3), np.uint8)) for part in parts if part["type"] != "text"]
        return Prompt(list(text.encode()), list(range(len(views))), views)


class FakeEngine:
    """Answers with the prompt, a byte at a time. A prompt that begins with `!` is a command."""

    def __init__(self) -> None:
        self.is_ready, self.has_failed = True, False
        self.generations: list[Generation] = []
        self.cancelled: list[str] = []
        self.held: dict[str, Held] = {}
        self.closed = threading.Event()
        self.room = 1000
        self._changed = threading.Condition()

    def submit(self, generation: Generation, listener: Listener) -> None:
        command = bytes(generation.input_ids).decode()
        if command == "!full" or len(self.generations) >= self.room:
            raise QueueFullError(7.2)
        if command == "!large":
            raise TooLargeError("the prompt has more tokens than the model has positions")
        if command == "!crash":
            raise RuntimeError("secret: at 0xdeadbeef")
        with self._changed:
            self.generations.append(generation)
            self.held[generation.request_id] = Held()
            self._changed.notify_all()
        threading.Thread(target=self._answer, args=(generation, listener, command), daemon=True).start()

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        if request_id in self.held:
            self.held[request_id].is_gone.set()

    def load(self) -> Load:
        return Load(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)

    def close(self, timeout: float) -> None:
        self.closed.set()
        for held in self.held.values():
            held.is_gone.set()

    def wait_for(self, generations: int) -> list[Generation]:
        """All, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.generations) >= generations, _PATIENCE)
            return list(self.generations)

    def _answer(self, generation: Generation, listener: Listener, command: str) -> None:
        held = self.held[generation.request_id]
        if command == "!fail":
            listener(Failure(422, "bad_image", "image 1 cannot be read"))
            return
        if command == "!silent":
            held.is_there.set()
            held.wait_until_gone()
            return
        listener(Begun(cached_tokens=3, cached_images=min(1, len(generation.views))))
        if command == "!break":
            listener(Piece("half", (Token(104),)))
            listener(Failure(500, "engine_failed", "the engine has failed"))
        elif command in ("!hold", "!endless"):
            self._go_on(held, listener, command)
        else:
            for piece in _pieces(generation):
                listener(piece)

    def _go_on(self, held: Held, listener: Listener, command: str) -> None:
        listener(Piece("begun", tuple(map(Token, b"begun"))))
        held.is_there.set()
        while not held.is_gone.wait(0.01):
            if command == "!endless":
                listener(Piece("x" * 100_000, (Token(120),)))
        if self.closed.is_set():
            listener(Failure(503, "shutting_down", "the server is shutting down"))


def _pieces(generation: Generation) -> Iterator[Piece]:
    sampling = generation.sampling
    answer = bytes(generation.input_ids)
    found = [answer.find(stop.encode()) for stop in sampling.stop if stop.encode() in answer]
    kept = answer[: min(found, default=len(answer))][: sampling.max_new_tokens]
    reason = "length" if len(kept) == sampling.max_new_tokens else "stop"
    waiting = b""
    for place, byte in enumerate(kept):
        waiting += bytes([byte])
        try:
            text, waiting = waiting.decode(), b""
        except UnicodeDecodeError:  # a part of a character
            text = ""
        yield Piece(text, (_token(byte, generation),), reason if place == len(kept) - 1 else None)
    if not kept:
        yield Piece("", (), "stop")


def _token(byte: int, generation: Generation) -> Token:
    if not generation.sampling.logprobs:
        return Token(byte)
    return Token(byte, -0.5, tuple((other, -float(other)) for other in range(65, 65 + generation.top_logprobs)))


@dataclasses.dataclass(frozen=True)
class Running:
    """A server under way."""

    port: int
    engine: FakeEngine
    fetcher: FakeFetcher
    decoders: FakeDecoders
    signal: Callable[[], None]  # as SIGTERM would be
    ended: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running_server(
    *, keys: Sequence[str] = (), limits: ServerLimits | None = None, max_preparing: int = 64, **settings: object
) -> Iterator[Running]:
    """A server in a thread, on a port that is free."""
    engine, fetcher, decoders = FakeEngine(), FakeFetcher(), FakeDecoders()
    taken, started, ended = listen("127.0.0.1", 0), threading.Event(), threading.Event()
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        loop, gate = asyncio.get_running_loop(), Gate(max_preparing)

        def on_start(end: Callable[[], None]) -> None:
            ends.append(lambda: loop.call_soon_threadsafe(end))  # type: ignore[arg-type]
            started.set()

        options = {"models": (MODEL, "other-name"), "sampling": DEFAULTS, "positions": 1000} | settings
        counts = {"decoders": lambda: {"waiting": 1.0}}
        app = make_app(engine, fetcher, decoders, Bytes(), ApiSettings(**options), ApiKeys(keys), gate, counts)
        await run_server(app, taken, gate, engine, limits or ServerLimits(), on_start)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            started.set()
            ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(_PATIENCE) and ends
    running = Running(taken.getsockname()[1], engine, fetcher, decoders, ends[0], ended)
    try:
        yield running
    finally:
        if not ended.is_set():
            for held in engine.held.values():
                held.is_gone.set()
            with contextlib.suppress(RuntimeError):  # it ended in this moment
                running.signal()
                running.signal()
        thread.join(_PATIENCE)
        assert not thread.is_alive()


def body(text: object = "hello", **fields: object) -> bytes:
    """Of a request with one message."""
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}).encode()
