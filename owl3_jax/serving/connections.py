"""Ends connections that keep a server waiting: uvicorn has a time limit only for the pause between two requests."""

import asyncio
import dataclasses
import time
from collections.abc import Iterable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Transport(Protocol):
    """Of asyncio."""

    def is_closing(self) -> bool:
        """Whether it was told to close, which it does once all is sent."""

    def get_write_buffer_size(self) -> int:
        """Bytes that the client has not taken."""

    def abort(self) -> None:
        """Closes it now."""


@runtime_checkable
class Cycle(Protocol):
    """uvicorn's name of a request with its response."""

    response_complete: bool


@runtime_checkable
class Connection(Protocol):
    """One of uvicorn's `server_state.connections`."""

    transport: Transport
    cycle: Cycle | None


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
    """Of connections in which the client has to do something."""

    head_seconds: float = 20.0  # for the headers of a request; also for the rest of a body that was refused
    write_seconds: float = 60.0  # in which the client takes nothing
    connections: int = 2048  # beyond these, those that ask for nothing make room
    every: float = 1.0  # seconds between two looks at all of them


class Sweeper:
    """Looks at all connections again and again."""

    def __init__(self, connections: Iterable[Connection], limits: ConnectionLimits) -> None:
        """`connections`: a set that changes."""
        self._connections, self._limits = connections, limits
        self._seen: dict[Connection, tuple[tuple[str, int], float]] = {}  # what each waits for, and since when

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._limits.every)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Ends those whose time is over."""
        seen = {}
        for connection in list(self._connections):
            wait = _wait_of(connection)
            if wait is None:
                continue
            before, since = self._seen.get(connection, (wait, now))
            seen[connection] = wait, since if before == wait else now
        self._seen = seen
        for connection in self._late(now):
            self._seen.pop(connection)
            connection.transport.abort()

    def _late(self, now: float) -> list[Connection]:
        limits = {"head": self._limits.head_seconds, "write": self._limits.write_seconds}
        late = [each for each, ((kind, _), since) in self._seen.items() if now - since > limits[kind]]
        surplus = len(list(self._connections)) - len(late) - self._limits.connections
        waiting = [each for each, ((kind, _), _) in self._seen.items() if kind == "head" and each not in late]
        return late + sorted(waiting, key=lambda each: self._seen[each][1])[: max(0, surplus)]


def _wait_of(connection: Connection) -> tuple[str, int] | None:
    """What a connection waits for; it changes when the client does something. None: for this server."""
    transport, cycle = connection.transport, connection.cycle
    if size := transport.get_write_buffer_size():
        return "write", size
    if transport.is_closing():
        return "write", 0
    if cycle is None or cycle.response_complete:
        return "head", id(cycle)
    return None
