"""The two kinds of load: a number of clients of which each waits for its answer, and arrivals that wait for nobody."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np

from owl3_jax.serving.bench.bodies import Prepared, RequestOptions, Stock
from owl3_jax.serving.bench.client import Client, Reply
from owl3_jax.serving.bench.record import Run, make_record
from owl3_jax.serving.bench.workload import ARRIVALS, Conversation


@dataclasses.dataclass(frozen=True)
class Talk:
    """Holds conversations with a server, and notes what became of each request in a run.

    Args:
        client: to the server.
        options: of the requests.
        run: gets the records.
        zero: when the measurement began, of `time.perf_counter`.
        advance: told of the requests that are settled: answered, failed, or not sent because the one before them failed.
    """

    client: Client
    options: RequestOptions
    run: Run
    zero: float
    advance: Callable[[int], None]

    async def hold(self, prepared: Prepared, scheduled: float | None = None) -> None:
        """Asks all questions of a conversation, each after the answer to the one before; a failure ends it.

        `scheduled` is when the first should have been sent; None: when it is.
        """
        conversation, body = prepared.conversation, prepared.body
        history = [prepared.first_message] if prepared.first_message else []
        for turn, _ in enumerate(conversation.questions):
            reply = await self._ask(conversation, turn, body, scheduled)
            left = len(conversation.questions) - turn - 1
            self.advance(1 + left if reply.error else 1)
            if reply.error or not left:
                return
            history.append({"role": "assistant", "content": "".join(reply.answer.texts)})
            history.append({"role": "user", "content": conversation.questions[turn + 1]})
            body = await asyncio.to_thread(self.options.body, history)
            scheduled = None

    async def _ask(self, conversation: Conversation, turn: int, body: bytes, scheduled: float | None) -> Reply:
        self.run.under_way += 1
        reply = await self.client.ask(body)
        self.run.under_way -= 1
        record = make_record(reply, self.zero, reply.sent if scheduled is None else scheduled, conversation, turn)
        self.run.records.append(record)
        self.run.ended = max(self.run.ended, record.ended)
        return reply


async def closed_loop(stock: Stock, talk: Talk, concurrency: int, duration: float = float("inf")) -> None:
    """Holds all conversations, `concurrency` at a time; none begins after `duration` seconds."""
    last_begin = time.perf_counter() + duration

    async def be_client() -> None:
        while time.perf_counter() < last_begin and (prepared := await stock.take()):
            await talk.hold(prepared)

    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(be_client())


async def open_loop(stock: Stock, talk: Talk, arrivals: Iterator[float], most_at_once: int) -> None:
    """Begins a conversation at each of `arrivals`, seconds from now, however long the answers take.

    Latencies count from those times, whatever kept a request from being sent: a busy client, or `most_at_once` requests that
    have no answer yet. So a server that stalls is charged for all whom it kept waiting (no coordinated omission).
    """
    begin, room = time.perf_counter(), asyncio.Semaphore(most_at_once)

    async def be_client(prepared: Prepared, scheduled: float) -> None:
        try:
            await talk.hold(prepared, scheduled)
        finally:
            room.release()

    async with asyncio.TaskGroup() as clients:
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, begin + arrival - time.perf_counter()))
            await room.acquire()
            if (prepared := await stock.take()) is None:
                return
            clients.create_task(be_client(prepared, begin + arrival))


def poisson_arrivals(rate: float, duration: float, seed: int) -> Iterator[float]:
    """Times of arrivals in seconds, `rate` of them a second on average, independent of each other, until `duration`."""
    random = np.random.default_rng([ARRIVALS, seed])
    times = itertools.accumulate(random.exponential(1 / rate) for _ in itertools.count())
    return itertools.takewhile(lambda time: time < duration, times)
