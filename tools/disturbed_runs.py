"""Runs of several processes that someone disturbs, and what they read."""

import contextlib
import json
import os
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


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
