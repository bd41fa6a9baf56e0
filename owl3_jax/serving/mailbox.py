"""From the engine's thread to the event loop: the events of a request's answers."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence

from owl3_jax.serving.generation import Begun, Event, Failure, Listener, Piece, Token


class _Waiting:
    """Events of one answer that nobody has taken yet. However slow the reader, it is at most the answer itself."""

    def __init__(self) -> None:
        self.begun: Begun | None = None
        self.texts: list[str] = []
        self.tokens: list[Token] = []
        self.last: Piece | None = None
        self.failure: Failure | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Begun):
            self.begun = event
        elif isinstance(event, Failure):
            self.failure = event
        else:
            self.texts.append(event.text)
            self.tokens += event.tokens
            self.last = event

    def all(self) -> list[Event]:
        """In order; pieces as one."""
        events: list[Event] = [] if self.begun is None else [self.begun]
        if self.last is not None:
            events.append(Piece("".join(self.texts), tuple(self.tokens), self.last.finish_reason))
        return events if self.failure is None else [*events, self.failure]


class Mailbox:
    """Events of the answers to one prompt, by their numbers. Made in the loop that takes them."""

    def __init__(self, answers: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._is_open = True
        self._arrived = asyncio.Event()
        self._answers = answers

    def listeners(self) -> Sequence[Listener]:
        """What the engine calls, for each answer. They return at once and raise nothing."""
        return [lambda event, number=number: self._put(number, event) for number in range(self._answers)]  # type: ignore[misc]

    async def take(self) -> list[tuple[int, Event]]:
        """All events since the last call; waits for the first. Pieces of one answer are joined."""
        await self._arrived.wait()
        self._arrived.clear()
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return [(number, event) for number, answer in waiting.items() for event in answer.all()]

    def close(self) -> None:
        """Nobody takes events any more: what there is, and what comes, is dropped."""
        with self._lock:
            self._is_open = False
            self._waiting = {}

    def _put(self, number: int, event: Event) -> None:
        with self._lock:
            if not self._is_open:
                return
            is_first = not self._waiting
            self._waiting.setdefault(number, _Waiting()).add(event)
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the request
                self._loop.call_soon_threadsafe(self._arrived.set)
