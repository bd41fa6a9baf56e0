"""Runs of several processes that someone disturbs, and what they read."""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from warm_train import NUMBER

REPOSITORY = Path(__file__).parents[1]
STEPS, SAVED_EVERY, LOGGED_EVERY, EVALUATED_EVERY = 12, 3, 1, 4
DEVICES = 4  # of all processes
SILENCE, TIMEOUT = 30.0, 40.0  # seconds, of --distributed.silence and --distributed.timeout
DATA_TIMEOUT = 40.0  # seconds, of data.timeout
_PATIENCE = 400.0  # seconds for a life to end

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
        port = free_port()
        self.processes = list[Process]()
        try:
            for number in range(processes):
                self.processes.append(_start(place, workdir, processes, number, port, devices, settings))
        except BaseException:
            for process in self.processes:
                process.send_signal(signal.SIGKILL)
            raise
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.processes[0].output:
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
            except TimeoutError:
                statuses.append(None)
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # its loaders too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._reader.join()
        for process in self.processes:
            process.close()
        return statuses


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


class Process:
    """train.py in a process of its own, as `subprocess.Popen` has it."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], *, is_heard: bool) -> None:
        """`is_heard`: whether somebody reads `output`."""
        self._connection, theirs = socket.socketpair()
        output, written = os.pipe() if is_heard else (os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
        self.output = os.fdopen(output, encoding="utf-8", errors="replace")
        with theirs, os.fdopen(written, "wb"):
            socket.send_fds(_warm(), [b"-"], [theirs.fileno()])
            order = json.dumps({"arguments": arguments, "environment": environment}).encode()
            socket.send_fds(self._connection, [order], [written])
        self.pid = self._number()
        self._status: int | None = None

    def _number(self) -> int:
        number: int = NUMBER.unpack(self._connection.recv(NUMBER.size, socket.MSG_WAITALL))[0]
        return number

    def poll(self) -> int | None:
        """Its exit status; None until it ends."""
        with contextlib.suppress(TimeoutError):
            self.wait(0.0)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises TimeoutError."""
        if self._status is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutError
            self._status = self._number()
        return self._status

    def send_signal(self, number: signal.Signals) -> None:
        """To it alone; nothing once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # in this moment
                os.kill(self.pid, number)

    def close(self) -> None:
        """Frees what is left of an ended process."""
        self._connection.close()
        self.output.close()


@functools.cache
def _warm() -> socket.socket:
    """The other end of `warm_train.py`'s socket, which ends with this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, str(REPOSITORY / "tools/warm_train.py"), str(theirs.fileno())]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
    return ours


def _start(place: Place, workdir: Path, processes: int, number: int, port: int, devices: int, settings: Settings) -> Process:
    arguments = [f"--config={REPOSITORY / 'configs/digits.py'}", f"--workdir={workdir}"]
    for name, value in settings.items():
        arguments += [f"--config.{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    if processes > 1:
        arguments += [f"--distributed.coordinator=127.0.0.1:{port}", f"--distributed.processes={processes}"]
        arguments += [f"--distributed.process={number}", f"--distributed.silence={SILENCE}", f"--distributed.timeout={TIMEOUT}"]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = {"JAX_COMPILATION_CACHE_DIR": str(place.root / "compiled"), "XLA_FLAGS": flags}
    return Process(arguments, environment, is_heard=number == 0)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
