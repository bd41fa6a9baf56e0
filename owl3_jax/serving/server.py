"""Runs the application on a socket until a signal comes, and then until what is under way has ended."""

import asyncio
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import uvicorn
from starlette.types import ASGIApp

from owl3_jax.serving.connections import Connection, ConnectionLimits, Sweeper
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.logs import log

_HEADER_BYTES = 32 * 1024  # of a request's headers together
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@runtime_checkable
class Closable(Protocol):
    """The engine, as far as its end goes."""

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself."""

    def close(self, timeout: float) -> None:
        """Ends all answers: those that take longer than `timeout` seconds fail."""


@dataclasses.dataclass(frozen=True)
class ServerLimits:
    """Of time and connections."""

    drain_seconds: float = 30.0  # for answers under way, once a signal came
    keep_alive_seconds: int = 15  # between two requests of a connection; less than a request's headers may take
    farewell_seconds: int = 5  # for the last bytes, when there are no more answers
    connections: ConnectionLimits = dataclasses.field(default_factory=ConnectionLimits)


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet. Taken before the model is loaded, it says at once that a port is in use.

    Raises OSError, with what was asked for.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error
    return taken


async def run_server(
    app: ASGIApp,
    taken: socket.socket,
    gate: Gate,
    engine: Closable,
    limits: ServerLimits,
    on_start: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, or until the engine fails, then refuses new requests, ends those under way, and returns.

    A second signal gives those under way no more time. Outside the main thread there are no signals: `on_start` gets a
    function that does what they do, and is to be called in the loop.
    """
    server = uvicorn.Server(_config(app, limits))
    ending = _Ending(gate, engine, limits.drain_seconds)
    serving = asyncio.ensure_future(server.serve(sockets=[taken]))
    while not server.started and not serving.done():  # uvicorn sets handlers of its own first
        await asyncio.sleep(0.01)
    _listen_for_end(ending.signal, on_start)
    connections = cast(set[Connection], server.server_state.connections)  # of its HTTP/1.1 in h11
    watching = asyncio.ensure_future(_watch(engine, ending.signal))
    sweeping = asyncio.ensure_future(Sweeper(connections, limits.connections).run())
    host, port, *_ = taken.getsockname()
    log("serving", host=host, port=port)
    try:
        drained = asyncio.ensure_future(ending.wait())
        await asyncio.wait((drained, serving), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        drained.cancel()
    finally:
        sweeping.cancel()
        watching.cancel()
    log("ended")


async def _watch(engine: Closable, end: Callable[[], None]) -> None:
    """A server whose engine has failed is of no use: whoever supervises it has to start it again."""
    while not engine.has_failed:
        await asyncio.sleep(1)
    log("the engine has failed", logging.ERROR)
    end()


def _listen_for_end(end: Callable[[], None], on_start: Callable[[Callable[[], None]], None] | None) -> None:
    if on_start is not None:
        on_start(end)
        return
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end)


class _Ending:
    """The steps from a signal to the end."""

    def __init__(self, gate: Gate, engine: Closable, seconds: float) -> None:
        self._gate, self._engine, self._seconds = gate, engine, seconds
        self._asked, self._hurried = asyncio.Event(), asyncio.Event()

    def signal(self) -> None:
        """Once: end in time. Twice: end now."""
        if self._asked.is_set():
            self._hurried.set()
        self._asked.set()
        self._gate.drain()

    async def wait(self) -> None:
        """Returns when nothing is under way, or the time is over and the engine has given up what was."""
        await self._asked.wait()
        log("draining", seconds=self._seconds)
        idle, hurried = (asyncio.ensure_future(each) for each in (self._gate.wait_until_idle(), self._hurried.wait()))
        await asyncio.wait((idle, hurried), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
        for each in (idle, hurried):
            each.cancel()
        await asyncio.to_thread(self._engine.close, 0.0)


def _config(app: ASGIApp, limits: ServerLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",  # the sweeper knows its connections
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # the application has its own, without what clients wrote
        proxy_headers=False,  # anybody can write them
        server_header=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.farewell_seconds,
    )
