"""Many clients for a long time: they ask, err and leave, while workers are killed; and what that does to the server."""

import asyncio
import dataclasses
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import aiohttp

from owl3_jax.inference.answers import Answer
from serving_checks.client import KILLED, Client, Outcome
from serving_checks.faults import faulty_requests
from serving_checks.live import CpuSeconds, LiveServer, failures
from serving_checks.questions import Question

_BAD, _LEAVING = 0.1, 0.05  # shares of requests
_SETTLED = 60.0  # seconds until all that clients left behind is gone
_EVERY = 1.0  # seconds between two samples of memory
_EMPTY = (
    "owl3_requests_waiting",
    "owl3_requests_running",
    "owl3_image_pages/used",
    "owl3_image_pages/shared",
    "owl3_text_pages/used",
    "owl3_decoders_waiting",
    "owl3_decoders_in_use",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is sent."""

    model: str
    questions: Sequence[tuple[Question, Answer]]
    requests: int
    clients: int = 32
    kill_every: int = 500  # requests between two kills of a worker; 0: none
    seed: int = 0
    key: str = ""  # of the API


class Sample(NamedTuple):
    """Of the server, within the run."""

    requests: int  # that have ended
    resident_mib: float
    workers_mib: float
    descriptors: int


@dataclasses.dataclass
class Run:
    """What came of it."""

    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0
    cpu: CpuSeconds = dataclasses.field(default_factory=lambda: CpuSeconds(0.0, 0.0, 0.0))
    problems: list[str] = dataclasses.field(default_factory=list)  # of the run as a whole


async def soak(server: LiveServer, plan: Plan) -> Run:
    """Carries out the plan."""
    run, numbers = Run(), itertools.count()
    before, descriptors, cpu = server.numbers(), _descriptors(server), server.cpu()
    watching = asyncio.ensure_future(_watch(server, run))
    began, headers = time.perf_counter(), {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        client = Client(session, server.url, plan.model)
        await asyncio.gather(*(_one_client(client, server, plan, run, numbers) for _ in range(plan.clients)))
    run.seconds, now = time.perf_counter() - began, server.cpu()
    run.cpu = CpuSeconds(*(late - early for late, early in zip(_fields(now), _fields(cpu), strict=True)))
    watching.cancel()
    await _settle(server, descriptors)
    run.problems += _left_behind(server, descriptors, before)
    run.problems += _unasked_failures(run)
    return run


async def _one_client(client: Client, server: LiveServer, plan: Plan, run: Run, numbers: Iterator[int]) -> None:
    faults = faulty_requests(plan.model)
    for number in numbers:
        if number >= plan.requests:
            return
        if plan.kill_every and server.pid and number % plan.kill_every == plan.kill_every - 1:
            _kill_a_worker(server, random.Random(number), run)
        rng = random.Random(f"{plan.seed} {number}")
        share, (question, answer) = rng.random(), rng.choice(plan.questions)
        if share < _BAD:
            outcome = await client.fail(rng.choice(faults))
        elif share < _BAD + _LEAVING:
            outcome = await client.leave(question, rng)
        else:
            outcome = await client.ask(question, answer, stream=rng.random() < 0.5)
        run.outcomes.append(outcome)


def _kill_a_worker(server: LiveServer, rng: random.Random, run: Run) -> None:
    if workers := server.workers():
        os.kill(rng.choice(workers), signal.SIGKILL)
        run.kills += 1


async def _watch(server: LiveServer, run: Run) -> None:
    while server.pid:
        measured = server.resident_mib(), server.resident_mib_of_workers(), server.descriptors()
        run.samples.append(Sample(len(run.outcomes), *measured))
        await asyncio.sleep(_EVERY)


async def _settle(server: LiveServer, descriptors: int) -> None:
    """Waits until the server notices that everybody has gone, and has its workers back."""
    deadline = time.monotonic() + _SETTLED
    while time.monotonic() < deadline:
        numbers = await asyncio.to_thread(server.numbers)
        if not any(numbers.get(name, 0) for name in _EMPTY) and _descriptors(server) <= descriptors:
            return
        await asyncio.sleep(0.5)


def _left_behind(server: LiveServer, descriptors: int, before: Mapping[str, float]) -> Iterator[str]:
    numbers = server.numbers()
    for name in _EMPTY:
        if value := numbers.get(name, 0):
            yield f"{name} is {value:g} when nobody asks any more"
    if (now := _descriptors(server)) > descriptors:
        yield f"{now} descriptors are open; before it were {descriptors}"
    for name, value in failures(numbers).items():
        if (new := value - before.get(name, 0.0)) > 0:
            yield f"the server counts {new:g} answers of {name}"


def _unasked_failures(run: Run) -> Iterator[str]:
    if (killed := sum(outcome.code == KILLED for outcome in run.outcomes)) > run.kills:
        yield f"{killed} requests lost their worker, of which {run.kills} were killed"


def _descriptors(server: LiveServer) -> int:
    return server.descriptors() if server.pid else 0


def _fields(cpu: CpuSeconds) -> tuple[float, float, float]:
    return cpu.event_loop, cpu.others, cpu.workers
