"""What is done to training runs of several processes: kills, signals, hangs, full disks, damaged checkpoints, lost sources."""

import contextlib
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from checkpoint_damage import DAMAGES
from disturbed_runs import (
    DATA_TIMEOUT,
    DEVICES,
    EVALUATED_EVERY,
    LOGGED_EVERY,
    SAVED_EVERY,
    SILENCE,
    STEPS,
    Life,
    Place,
    Process,
)

HUNG_LOADER = "hung loader"  # whose life needs processes that load data
_GONE = 10.0  # seconds that a source is away, unless the run ends before


class Fault(NamedTuple):
    """Something that is done to a life. `inflict` returns what it was."""

    name: str
    inflict: Callable[[Life, Place, random.Random], str]


def _wait_in_start(life: Life, rng: random.Random) -> str:
    time.sleep(rng.uniform(0.0, 2.0))
    return "while it starts"


def _wait_for_data(life: Life, rng: random.Random) -> str:
    life.await_that(lambda: any(life.data.rglob("*")))
    time.sleep(rng.uniform(0.0, 0.5))
    return "while the data set is built"


def _wait_for_compile(life: Life, rng: random.Random) -> str:
    life.await_line("resuming" if any((life.workdir / "checkpoints").glob("*[0-9]")) else f"{DEVICES} cpu")
    time.sleep(rng.uniform(0.0, 1.5))
    return "while it compiles"


def _wait_for_step(life: Life, rng: random.Random) -> str:
    step = rng.randrange(LOGGED_EVERY, STEPS, LOGGED_EVERY)
    life.await_that(lambda: any(_step_of(line) >= step for line in life.lines))
    time.sleep(rng.uniform(0.0, 0.3))
    return f"after step {step}"


def _wait_for_save(life: Life, rng: random.Random) -> str:
    life.await_line("step ")
    life.await_that(lambda: any((life.workdir / "checkpoints").glob("*tmp*")))
    time.sleep(rng.uniform(0.0, 0.1))
    return "while it saves"


def _wait_for_evaluation(life: Life, rng: random.Random) -> str:
    step = EVALUATED_EVERY * rng.randint(1, STEPS // EVALUATED_EVERY)
    life.await_that(lambda: any(line.endswith("evaluating\n") and _step_of(line) >= step for line in life.lines))
    time.sleep(rng.uniform(0.0, 0.3))
    return f"in the evaluation of step {step}"


def _wait_for_end(life: Life, rng: random.Random) -> str:
    life.await_line(f"step {STEPS}/{STEPS}")
    time.sleep(rng.uniform(0.0, 0.3))
    return "after the last step"


_MOMENTS = {
    "start": _wait_in_start,
    "data": _wait_for_data,
    "compile": _wait_for_compile,
    "step": _wait_for_step,
    "save": _wait_for_save,
    "evaluation": _wait_for_evaluation,
    "end": _wait_for_end,
}


def _step_of(line: str) -> int:
    """Of a line that says something of a step; otherwise -1."""
    word, _, rest = line.partition(" ")
    number = rest.partition("/")[0].partition(":")[0]
    return int(number) if word == "step" and number.isdecimal() else -1


def _kill(moment: str) -> Callable[[Life, Place, random.Random], str]:
    def inflict(life: Life, place: Place, rng: random.Random) -> str:
        when = _MOMENTS[moment](life, rng)
        chosen = life.processes if rng.random() < 1 / 3 else [rng.choice(life.processes)]
        for process in chosen:
            process.send_signal(signal.SIGKILL)
        return f"kill -9 of {_whom(life, chosen)} {when}"

    return inflict


def _terminate(life: Life, place: Place, rng: random.Random) -> str:
    when = _MOMENTS[rng.choice(("compile", "step", "step", "step", "save", "evaluation"))](life, rng)
    chosen = [rng.choice(life.processes)]
    chosen[0].send_signal(signal.SIGTERM)
    return f"SIGTERM to {_whom(life, chosen)} {when}"


def _suspend(life: Life, place: Place, rng: random.Random) -> str:
    when = _wait_for_step(life, rng)
    chosen = [rng.choice(life.processes)]
    chosen[0].send_signal(signal.SIGSTOP)
    others = [process for process in life.processes if process not in chosen]
    deadline = time.monotonic() + 10 * SILENCE
    while others and any(process.poll() is None for process in others) and time.monotonic() < deadline:
        time.sleep(0.01)
    chosen[0].send_signal(signal.SIGKILL)  # as whoever restarts the host does
    return f"SIGSTOP of {_whom(life, chosen)} {when}"


def _fill_disk(life: Life, place: Place, rng: random.Random) -> str:
    """No file can grow any more: what a full disk does, without the rights to fill one."""
    when = _wait_for_step(life, rng)
    for process in life.processes:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return f"no room on the disk {when}"


def _damage(life: Life, place: Place, rng: random.Random) -> str:
    life.await_that(
        lambda: len(_checkpoints(life.workdir)) > 1 and any(_step_of(line) > 2 * SAVED_EVERY for line in life.lines)
    )
    for process in life.processes:
        process.send_signal(signal.SIGKILL)
    for process in life.processes:
        process.wait()
    how = rng.choice(sorted(DAMAGES))
    if len(_checkpoints(life.workdir)) < 2:
        return "no second checkpoint to damage"
    newest = _checkpoints(life.workdir)[-1]
    DAMAGES[how](newest)
    return f"kill -9 of all, and of checkpoint {newest.name} {how}"


def _take_away(life: Life, place: Place, rng: random.Random) -> str:
    when = _MOMENTS[rng.choice(("start", "compile", "step", "step"))](life, rng)
    place.photographs.rename(place.root / "away")
    _await_an_end(life, _GONE)
    return f"a source vanishes {when}"


def _suspend_loaders(life: Life, place: Place, rng: random.Random) -> str:
    """The processes that load data for one of the processes hang, as on a disk that does."""
    when = _wait_for_step(life, rng)
    chosen = rng.choice(life.processes)
    with contextlib.suppress(psutil.NoSuchProcess):
        for loader in psutil.Process(chosen.pid).children(recursive=True):
            loader.suspend()
    _await_an_end(life, 3 * DATA_TIMEOUT)
    return f"SIGSTOP of what loads for {_whom(life, [chosen])} {when}"


def _await_an_end(life: Life, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while all(process.poll() is None for process in life.processes) and time.monotonic() < deadline:
        time.sleep(0.01)


def bring_back(place: Place) -> None:
    """Puts back what `Fault.inflict` has taken away."""
    if (away := place.root / "away").exists():
        away.rename(place.photographs)


def _checkpoints(workdir: Path) -> list[Path]:
    """The complete ones, the newest last."""
    found = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _whom(life: Life, chosen: Sequence[Process]) -> str:
    return "all" if len(chosen) == len(life.processes) else f"process {life.processes.index(chosen[0])}"


FAULTS = (
    *(Fault(f"kill in {moment}", _kill(moment)) for moment in _MOMENTS),
    Fault("SIGTERM", _terminate),
    Fault("SIGSTOP", _suspend),
    Fault("full disk", _fill_disk),
    Fault("damage", _damage),
    Fault("vanished source", _take_away),
    Fault(HUNG_LOADER, _suspend_loaders),
)
