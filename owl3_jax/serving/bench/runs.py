"""The whole measurement: warm-up, the load, and where asked for, the same load one request after the other."""

import asyncio
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Coroutine

from owl3_jax.serving.bench.bodies import Preparer, RequestOptions, Stock
from owl3_jax.serving.bench.client import Client, ServerError
from owl3_jax.serving.bench.load import Talk, closed_loop, open_loop, poisson_arrivals
from owl3_jax.serving.bench.pictures import Pictures
from owl3_jax.serving.bench.record import Run
from owl3_jax.serving.bench.workload import Workload

SEQUENTIAL = "one after the other"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        concurrency: clients of a closed loop.
        rate: conversations that begin in a second, of an open loop; None for a closed one.
        conversations: most that are held; None for as many as `duration` allows.
        duration: seconds after which none begins.
        most_at_once: requests of an open loop.
        warm_up: conversations before the measurement.
        rounds: how often the load is run; more than once to compare.
        compares: whether each round also runs the same load one after the other.
        requires_answers: whether a failure while warming up ends it.
    """

    concurrency: int = 1
    rate: float | None = None
    conversations: int | None = None
    duration: float = math.inf
    most_at_once: int = 512
    warm_up: int = 0
    rounds: int = 1
    compares: bool = False
    requires_answers: bool = True

    @property
    def legs(self) -> list[tuple[str, int]]:
        """The name of each run in its order, and its clients.

        With a comparison the two kinds alternate, and which comes first too: what changes with time is fair to both.
        """
        name = f"open loop, {self.rate:g}/s" if self.rate else f"{self.concurrency} at once"
        pair = [(name, self.concurrency), (SEQUENTIAL, 1)] if self.compares else [(name, self.concurrency)]
        return [leg for number in range(self.rounds) for leg in (reversed(pair) if number % 2 else pair)]


@dataclasses.dataclass
class Measured:
    """What has been measured so far."""

    model: str = ""
    runs: list[Run] = dataclasses.field(default_factory=list)
    metrics_before: str | None = None
    metrics_after: str | None = None

    def by_name(self) -> list[list[Run]]:
        """Runs of the same load together, the first load first."""
        names = dict.fromkeys(run.name for run in self.runs)
        return [[run for run in self.runs if run.name == name] for name in names]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Runs a plan against a server. The runs show different pictures (variants) so that no cache helps a later one."""

    plan: Plan
    workload: Workload
    pictures: Pictures
    options: RequestOptions
    client: Client
    advance: Callable[[int], None] = lambda requests: None
    note: Callable[[str], None] = lambda text: None  # told what goes on

    async def measure(self, measured: Measured) -> None:
        """Fills `measured`, which holds what there is whenever this is cancelled.

        Raises ServerError when warming up fails, ValueError and OSError when a picture cannot be read.
        """
        measured.model = self.options.model
        await self._warm_up()
        zero = time.perf_counter()
        measured.metrics_before = await self.client.metrics()
        for variant, (name, clients) in enumerate(self.plan.legs):
            run = Run(name, time.perf_counter() - zero)
            measured.runs.append(run)
            await self._run(run, variant, clients, zero)
        measured.metrics_after = await self.client.metrics()

    async def _warm_up(self) -> None:
        if not self.plan.warm_up:
            return
        run, held = Run("warm-up", 0.0), itertools.islice(self.workload.conversations(), self.plan.warm_up)
        with Stock(held, self._preparer(len(self.plan.legs))) as stock:
            talk = Talk(self.client, self.options, run, time.perf_counter(), lambda requests: None)
            await _out_of_group(closed_loop(stock, talk, self.plan.concurrency))
        failed = list(run.failures)
        if failed and self.plan.requires_answers:
            raise ServerError(
                f"{len(failed)} of {len(run.records)} requests of the warm-up failed: {failed[0].error}: {failed[0].message}"
            )

    async def _run(self, run: Run, variant: int, clients: int, zero: float) -> None:
        held = itertools.islice(self.workload.conversations(), self.plan.conversations)
        talk = Talk(self.client, self.options, run, zero, self.advance)
        with Stock(held, self._preparer(variant)) as stock:
            self.note("making pictures")
            await asyncio.to_thread(stock.fill)
            self.note(run.name)
            run.began = run.ended = time.perf_counter() - zero
            if self.plan.rate:
                arrivals = poisson_arrivals(self.plan.rate, self.plan.duration, self.workload.seed)
                await _out_of_group(open_loop(stock, talk, arrivals, self.plan.most_at_once))
            else:
                await _out_of_group(closed_loop(stock, talk, clients, self.plan.duration))

    def _preparer(self, variant: int) -> Preparer:
        return Preparer(self.pictures, variant, self.options)


async def _out_of_group(load: Coroutine[None, None, None]) -> None:
    """Raises the first error of a load itself, not the group of those of all clients."""
    try:
        await load
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
