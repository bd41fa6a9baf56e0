"""Sends answers while they are made, and notices when nobody listens."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from owl3_jax.serving.answers import PING, Chunks, error_event
from owl3_jax.serving.completions import Answers
from owl3_jax.serving.errors import CLIENT_GONE, ApiError
from owl3_jax.serving.generation import Event
from owl3_jax.serving.record import Record

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves. Its body has been read.

    Raises ApiError when the client has left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise client_gone()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def client_gone() -> ApiError:
    """The end of a request whose client has left."""
    return ApiError(CLIENT_GONE, "client_gone", "the client has left")


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. What fails after the first byte is the last event, since the status is sent."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, chunks: Chunks, first: list[tuple[int, Event]], record: Record, ping: float) -> None:
        """`first`: events that were taken already. The answers are closed by this response, once it is sent or given up."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answers, self._chunks, self._first, self._record, self._ping = answers, chunks, first, record, ping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything."""
        try:
            await while_connected(receive, self._send_all(send))
        except ApiError as error:  # the client has left
            self._record.status, self._record.code = error.status, error.code
        finally:
            self._answers.close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_more(send, b"".join(self._chunks.start()))
        try:
            await self._send_events(send)
        except ApiError as error:
            self._record.code = error.code
            await _send_more(send, error_event(error.body()))
        else:
            await _send_more(send, b"".join(self._chunks.end()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        events = self._first
        while True:
            chunks = [chunk for number, event in events for chunk in self._chunks.add(number, event)]
            if chunks:
                await _send_more(send, b"".join(chunks))
            if self._answers.tally.is_complete:
                return
            if not (events := await self._answers.take(self._ping)):
                await _send_more(send, PING)


async def _send_more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
