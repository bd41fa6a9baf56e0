"""Reads many damaged files in processes of their own, so that a crash or a hang costs one file."""

import collections
import contextlib
import dataclasses
import faulthandler
import itertools
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from media_fuzz.mutations import mutate
from media_fuzz.seeds import Seed
from media_fuzz.trial import Outcome, Trial, try_file

_LAST_WORDS = 3000  # characters of a crashed process's errors that a report shows


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is tried."""

    files: int = 2000
    seed: int = 0
    workers: int = 2
    seconds: float = 60.0  # a file that takes longer has hung
    gigabytes: int = 6  # address space of a process


@dataclasses.dataclass(frozen=True)
class Fault:
    """A file that was neither read nor refused properly."""

    index: int
    seed: str
    outcome: Outcome


@dataclasses.dataclass
class Report:
    """What came of all files."""

    counts: dict[str, collections.Counter[str]]  # results by format
    faults: list[Fault]
    slowest: tuple[float, int]  # seconds, and the file's index

    @property
    def files(self) -> int:
        """How many were tried."""
        return sum(counter.total() for counter in self.counts.values())

    def table(self) -> str:
        """How many files of each format were read, refused, or faulty."""
        total = sum(self.counts.values(), collections.Counter())
        rows = [
            ("format", "files", "read", "refused", "faults"),
            *(_row(name, counter) for name, counter in (*sorted(self.counts.items()), ("all", total))),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            f"{name:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            for name, *cells in rows
        )


def _row(name: str, counter: collections.Counter[str]) -> tuple[str, ...]:
    faults = counter.total() - counter["read"] - counter["refused"]
    return name, *map(str, (counter.total(), counter["read"], counter["refused"], faults))


def damaged_file(seeds: Sequence[Seed], seed: int, index: int) -> Seed:
    """The file of number `index`: all whole files take turns, and the damage depends on `seed` and `index` alone."""
    whole = seeds[index % len(seeds)]
    content = mutate(whole.content, [other.content for other in seeds], np.random.default_rng((seed, index)))
    return dataclasses.replace(whole, content=content)


def replay(seeds: Sequence[Seed], settings: Settings, index: int) -> tuple[Seed, Outcome]:
    """Makes and reads one file in this process, for a debugger."""
    file = damaged_file(seeds, settings.seed, index)
    return file, try_file(file, index // len(seeds))


def run(seeds: Sequence[Seed], settings: Settings, *, trial: Trial = try_file, show_progress: bool = False) -> Report:
    """Makes and reads `settings.files` files.

    Args:
        seeds: whole files.
        settings: how many.
        trial: reads one; processes import it by its name.
        show_progress: whether a bar is printed.
    """
    report = Report(collections.defaultdict(collections.Counter), [], (0.0, 0))
    with _Pool(seeds, settings, trial) as pool, tqdm(total=settings.files, disable=not show_progress, unit="files") as bar:
        for index, outcome, seconds in pool.results():
            whole = seeds[index % len(seeds)]
            report.counts[f"{whole.kind} {whole.format}"][outcome.result] += 1
            report.slowest = max(report.slowest, (seconds, index))
            if outcome.is_fault:
                report.faults.append(Fault(index, whole.name, outcome))
            bar.update()
    report.faults.sort(key=lambda fault: fault.index)
    return report


class _Worker:
    """A process that reads one file after the other."""

    def __init__(self, seeds: Sequence[Seed], settings: Settings, trial: Trial, errors: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.errors = errors
        self.process = context.Process(target=_serve, args=(theirs, seeds, settings, trial, errors), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()  # it has started: importing does not count as reading
        self.index, self.since = -1, 0.0

    def start(self, index: int) -> None:
        self.index, self.since = index, time.monotonic()
        self.connection.send(index)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool:
    def __init__(self, seeds: Sequence[Seed], settings: Settings, trial: Trial) -> None:
        self._arguments, self._settings = (seeds, settings, trial), settings

    def __enter__(self) -> "_Pool":
        self._exit = contextlib.ExitStack()
        self._folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory()))
        self._names = map("errors-{}".format, itertools.count())
        self._workers = [self._spawn() for _ in range(self._settings.workers)]
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._exit.close()

    def _spawn(self) -> _Worker:
        return _Worker(*self._arguments, self._folder / next(self._names))

    def results(self) -> Iterator[tuple[int, Outcome, float]]:
        """Index, outcome and seconds of every file, in the order in which they end."""
        indices = iter(range(self._settings.files))
        busy = list(self._workers[: self._settings.files])
        for worker in busy:
            worker.start(next(indices))
        while busy:
            first = min(worker.since for worker in busy) + self._settings.seconds
            ready = wait([worker.connection for worker in busy], max(first - time.monotonic(), 0))
            for worker in list(busy):
                outcome = self._outcome(worker, is_ready=worker.connection in ready)
                if outcome is None:
                    continue
                yield worker.index, outcome, time.monotonic() - worker.since
                busy.remove(worker)
                next_worker = self._replace(worker) if outcome.result in ("hung", "crashed") else worker
                if (index := next(indices, None)) is not None:
                    next_worker.start(index)
                    busy.append(next_worker)

    def _replace(self, worker: _Worker) -> _Worker:
        worker.stop()
        self._workers.remove(worker)
        self._workers.append(self._spawn())
        return self._workers[-1]

    def _outcome(self, worker: _Worker, *, is_ready: bool) -> Outcome | None:
        if is_ready:
            try:
                return worker.connection.recv()
            except EOFError:
                worker.process.join()
                return Outcome("crashed", f"exit code {worker.process.exitcode}\n{worker.errors.read_text()[-_LAST_WORDS:]}")
        if time.monotonic() - worker.since >= self._settings.seconds:
            return Outcome("hung", f"not finished after {self._settings.seconds:g} s")
        return None


def _serve(connection: Connection, seeds: Sequence[Seed], settings: Settings, trial: Trial, errors: Path) -> None:
    # Libraries write warnings to the standard error; after a crash it holds where that was.
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (settings.gigabytes << 30, settings.gigabytes << 30))
    connection.send(None)
    with contextlib.suppress(EOFError):  # the other side is done
        while True:
            index = connection.recv()
            connection.send(trial(damaged_file(seeds, settings.seed, index), index // len(seeds)))
