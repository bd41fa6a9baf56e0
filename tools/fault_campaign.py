"""Disturbs training runs of several processes in every way that long runs meet, and compares how they end.

    python tools/fault_campaign.py --runs 60 [--seed 0] [--processes 2] [--only damage]

Each run trains a small model on digits with four CPU devices, split over 2 or 4 processes that are started again by the same
commands until all of them end with 0, as a supervisor does. Something is done to it at a random moment, sometimes to its
second life too. In the end its parameters must be those of an undisturbed run, bit for bit, and so must the losses that it has
reported. Prints a line for each run, a table in the end, and exits with 1 if one differs, hangs, or ends with an exit status
that docs/training.md does not name.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from checkpoint_damage import DAMAGES
from PIL import Image
from sklearn.datasets import load_digits

from owl3_jax.convert.stored import open_stored
from owl3_jax.host.lifeline import LOST

REPOSITORY = Path(__file__).parents[1]
STEPS, SAVED_EVERY, LOGGED_EVERY, EVALUATED_EVERY = 12, 3, 1, 4
DEVICES = 4
SILENCE, TIMEOUT = 30.0, 40.0  # seconds, of --distributed.silence and --distributed.timeout
HUNG_LOADER = "hung loader"
DATA_TIMEOUT = 40.0  # seconds, of data.timeout
_PATIENCE = 400.0  # seconds for a life to end
_GONE = 10.0  # seconds that a source is away, unless the run ends before
_MOST_LIVES = 8
_SECOND_FAULT = 0.25  # share of runs

Settings = Mapping[str, object]  # of a config, by path; a value of several words as a tuple

SMALL: Settings = {  # what compiles fast: two layers, of which the parts of the paper's first stage are trained
    "model.num-hidden-layers": 2,
    "model.hyper-layers": 1,
    "model.hidden-size": 32,
    "model.intermediate-size": 48,
    "model.vision.num-hidden-layers": 2,
    "model.vision.hidden-size": 32,
    "model.vision.intermediate-size": 48,
    "compute.remat": "none",
    "optimizer.name": "sgd",
    "optimizer.b2": 0.95,
    "train.trained": ("projector", "hyper"),
    "data.rows": 4,
    "data.prefetch": 2,
    "data.timeout": DATA_TIMEOUT,
    "train.steps": STEPS,
    "train.log-every": LOGGED_EVERY,
    "train.checkpoint-every": SAVED_EVERY,
}
VALIDATED: Settings = {"validation.every": EVALUATED_EVERY, "validation.batches": 2}


class Place(NamedTuple):
    """A folder with all that runs read and write."""

    root: Path

    @property
    def photographs(self) -> Path:
        """The source that vanishes: a file of conversations, and a folder of images beside it."""
        return self.root / "photographs"


class Life:
    """The processes of a run, from their start to their end."""

    def __init__(self, place: Place, workdir: Path, processes: int, devices: int, settings: Settings) -> None:
        """`devices` are those of each process."""
        self.workdir, self.lines = workdir, list[str]()
        self.data = Path(str(settings["data.data-dir"]))
        port = _free_port()
        with contextlib.ExitStack() as started:
            self.processes = [
                started.enter_context(_start(place, workdir, processes, number, port, devices, settings))
                for number in range(processes)
            ]
            started.pop_all()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        output = self.processes[0].stdout
        assert output is not None
        for line in output:
            self.lines.append(line)

    def await_line(self, start: str) -> bool:
        """Waits for a line of process 0 that begins so; returns whether it came before a process ended."""
        return self.await_that(lambda: any(line.startswith(start) for line in self.lines))

    def await_that(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; returns whether it held before a process ended."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if condition():
                return True
            if any(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.002)
        return False

    def end(self) -> list[int | None]:
        """Waits for all processes to end; the exit status of each, None of those that hang, which are killed then."""
        deadline = time.monotonic() + _PATIENCE
        statuses: list[int | None] = []
        for process in self.processes:
            try:
                statuses.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                statuses.append(None)
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # its loaders too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._reader.join()
        return statuses


class Fault(NamedTuple):
    """Something that is done to a life. `inflict` returns what it was."""

    name: str
    inflict: Callable[[Life, Place, random.Random], str]


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), help="of each run; by default 2 and 4 in turn")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], help="these faults alone")
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="owl3-faults-") as folder:
        place = Place(Path(folder))
        write_photographs(place.photographs)
        results = list(_campaign(place, flags.runs, flags.seed, flags.processes, flags.only))
    _print_table(results)
    failed = sum(not is_good for _, is_good in results)
    print(f"{len(results) - failed} of {len(results)} runs ended as undisturbed ones do", flush=True)
    sys.exit(bool(failed))


def _campaign(
    place: Place, runs: int, seed: int, processes: int | None, only: Sequence[str] | None
) -> Iterator[tuple[list[str], bool]]:
    """The faults of each run, and whether it ended well."""
    faults = [fault for fault in FAULTS if only is None or fault.name in only]
    straight: dict[int, str] = {}
    for number in range(runs):
        count = processes or (2, 4)[number % 2]
        if count not in straight:
            straight[count] = _undisturbed(place, count)
        rng = random.Random(f"{seed} {number}")
        # Every fault in turn, for 2 and for 4 processes.
        chosen = [faults[(number if processes else number // 2) % len(faults)]]
        if rng.random() < _SECOND_FAULT:
            chosen.append(rng.choice(faults))
        began = time.monotonic()
        workdir = place.root / f"run-{number}"
        said, problem = _disturbed(place, workdir, count, chosen, rng)
        problem = problem or ("" if _result(workdir) == straight[count] else "DIFFERS")
        shutil.rmtree(workdir, ignore_errors=True)
        seconds = time.monotonic() - began
        done, ended = "; then ".join(said), problem or "bit-identical"
        print(f"run {number + 1}/{runs}  {count} processes  {done}  {ended}  {seconds:.0f} s", flush=True)
        yield [fault.name for fault in chosen], not problem


def _undisturbed(place: Place, processes: int) -> str:
    workdir = place.root / f"straight-{processes}"
    began = time.monotonic()
    life = _disturbable(place, workdir, processes, place.root / "data", 0)
    statuses = life.end()
    if any(statuses):
        sys.exit(f"error: the undisturbed run ended with {_named(statuses)}:\n{''.join(life.lines)}")
    print(f"undisturbed  {processes} processes  {time.monotonic() - began:.0f} s", flush=True)
    return _result(workdir)


def _disturbable(place: Place, workdir: Path, processes: int, data: Path, workers: int) -> Life:
    sources = {
        "data.sources": ("digits", place.photographs / "train.jsonl"),
        "validation.sources": (place.photographs / "heldout.jsonl",),
    }
    own = {"data.data-dir": data, "data.workers": workers}
    return Life(place, workdir, processes, DEVICES // processes, {**SMALL, **VALIDATED, **sources, **own})


def _disturbed(place: Place, workdir: Path, processes: int, faults: list[Fault], rng: random.Random) -> tuple[list[str], str]:
    """What was done in each life, and what went wrong beyond it."""
    said: list[str] = []
    data = place.root / "data"
    if faults[0].name == "kill in data":
        data = place.root / f"data-{workdir.name}"  # which this run has to build
    for number in range(_MOST_LIVES):
        inflicted = number < len(faults)
        needs_loader = inflicted and faults[number].name == HUNG_LOADER
        life = _disturbable(place, workdir, processes, data, workers=1 if needs_loader else rng.choice((0, 0, 0, 1)))
        try:
            if inflicted:
                said.append(faults[number].inflict(life, place, rng))
        finally:
            statuses = life.end()
            _bring_back(place)
        said[-1] += f" [{_named(statuses)}]"
        if not inflicted and any(status not in (0, LOST) for status in statuses):  # 75: a starved process looks like a hung one
            return said, f"ENDED WITH {_named(statuses)} by itself: {''.join(life.lines[-3:])}"
        if unexpected := [status for status in statuses if status not in _EXPECTED]:
            return said, f"ENDED WITH {_named(unexpected)}, which no supervisor knows"
        if not any(statuses) and any(line.startswith("finished") for line in life.lines):
            return said, ""
    return said, f"NOT FINISHED after {_MOST_LIVES} lives"


# Of killed processes; of those that lost another one, where JAX aborts sometimes before the lifeline ends them; of those that
# cannot go on. After a signal a supervisor starts them again, as after 75.
_EXPECTED = (0, -signal.SIGKILL, -signal.SIGTERM, LOST, -signal.SIGABRT, 1)


def _named(statuses: Sequence[int | None]) -> str:
    return " ".join("hangs" if status is None else str(status) for status in statuses)


def _result(workdir: Path) -> str:
    """A digest of the last parameters, and of the losses that were reported for each step."""
    digest = hashlib.sha256()
    stored = open_stored(workdir, step=STEPS)
    for path in sorted(stored.parameters):
        digest.update(path.encode() + np.ascontiguousarray(stored.parameters[path].read()).tobytes())
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        report = json.loads(line)
        digest.update(repr([report.get(name) for name in ("step", "loss", "grad_norm", "heldout/loss")]).encode())
    return digest.hexdigest()


# ---- what is done


def _wait_in_start(life: Life, rng: random.Random) -> str:
    time.sleep(rng.uniform(0.0, 6.0))
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
            process.kill()
        return f"kill -9 of {_whom(life, chosen)} {when}"

    return inflict


def _terminate(life: Life, place: Place, rng: random.Random) -> str:
    when = _MOMENTS[rng.choice(("compile", "step", "step", "step", "save", "evaluation"))](life, rng)
    chosen = [rng.choice(life.processes)]
    chosen[0].terminate()
    return f"SIGTERM to {_whom(life, chosen)} {when}"


def _suspend(life: Life, place: Place, rng: random.Random) -> str:
    when = _wait_for_step(life, rng)
    chosen = [rng.choice(life.processes)]
    chosen[0].send_signal(signal.SIGSTOP)
    others = [process for process in life.processes if process not in chosen]
    deadline = time.monotonic() + 10 * SILENCE
    while others and any(process.poll() is None for process in others) and time.monotonic() < deadline:
        time.sleep(0.01)
    chosen[0].kill()  # as whoever restarts the host does
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
        process.kill()
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


def _bring_back(place: Place) -> None:
    if (away := place.root / "away").exists():
        away.rename(place.photographs)


def _checkpoints(workdir: Path) -> list[Path]:
    """The complete ones, the newest last."""
    found = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _whom(life: Life, chosen: Sequence["subprocess.Popen[str]"]) -> str:
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


# ---- what runs


def _start(
    place: Place, workdir: Path, processes: int, number: int, port: int, devices: int, settings: Settings
) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        str(REPOSITORY / "tools/warm_train.py"),
        f"--config={REPOSITORY / 'configs/digits.py'}",
        f"--workdir={workdir}",
    ]
    for name, value in settings.items():
        command += [f"--config.{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    if processes > 1:
        command += [f"--distributed.coordinator=127.0.0.1:{port}", f"--distributed.processes={processes}"]
        command += [f"--distributed.process={number}", f"--distributed.silence={SILENCE}", f"--distributed.timeout={TIMEOUT}"]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(place.root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(REPOSITORY),
    }
    output, errors = (subprocess.PIPE, subprocess.STDOUT) if number == 0 else (subprocess.DEVNULL, subprocess.DEVNULL)
    return subprocess.Popen(command, env=environment, stdout=output, stderr=errors, text=True, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def write_photographs(folder: Path) -> None:
    """Conversations about handwritten digits in files."""
    digits = load_digits()
    (folder / "images").mkdir(parents=True)
    records = []
    for number, (pixels, label) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        name = f"images/{number}.png"
        Image.fromarray((pixels * 15).astype(np.uint8)).resize((8, 8)).save(folder / name)
        messages = [{"role": "user", "content": "<image>Which digit is red?"}, {"role": "assistant", "content": f"red {label}"}]
        records.append(json.dumps({"messages": messages, "images": [name]}) + "\n")
    (folder / "train.jsonl").write_text("".join(records[:250]))
    (folder / "heldout.jsonl").write_text("".join(records[250:]))


def _print_table(results: Sequence[tuple[list[str], bool]]) -> None:
    runs, good = Counter[str](), Counter[str]()
    for faults, is_good in results:
        for name in faults:
            runs[name] += 1
            good[name] += is_good
    print(f"\n{'what was done':<20}{'runs':>6}{'ended as undisturbed':>24}")
    for fault in FAULTS:
        if runs[fault.name]:
            print(f"{fault.name:<20}{runs[fault.name]:>6}{good[fault.name]:>24}")


if __name__ == "__main__":
    main()
