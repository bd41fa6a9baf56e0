"""What training costs beside its steps: saving, waiting for data, agreeing on when to stop, and memory over many steps."""

import dataclasses
import functools
import json
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from disturbed_runs import free_port

from owl3_jax import sharding
from owl3_jax.config import Config, OptimizerConfig, TrainConfig
from owl3_jax.host.command_line import load_config
from owl3_jax.training.checkpoint import Checkpoints
from owl3_jax.training.loop import make_iterator, train
from owl3_jax.training.processor import make_processor
from owl3_jax.training.step import init_state

REPOSITORY = Path(__file__).parents[1]
SAVED_EVERY, STEPS = 5, 31  # of the runs whose step times are compared; the first steps are left out
_WARM = 11  # the first save compiles checksums
_QUESTIONS, _PROCESSES = 20_000, 4
_FROM = 500  # steps after which memory has to be flat

Report = dict[str, Any]  # Any: numbers and lists of numbers


class Sample(NamedTuple):
    """What a process holds after so many steps."""

    step: int
    resident: int  # bytes
    files: int
    threads: int


def measure(folder: Path, repeats: int, steps: int, width: int) -> Report:
    """All of it; memory is watched over `steps` (0: it is left out), and `width` is that of the model that is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_config(REPOSITORY / "configs/digits.py")
    digits = dataclasses.replace(digits, data=dataclasses.replace(digits.data, data_dir=str(folder / "data")))
    report: Report = {"saves": _measure_saves(folder, _large(digits, width), repeats)}
    report["waits"] = _measure_waits(folder, digits)
    report["agreement"] = _measure_agreement(report["waits"]["step_ms"])
    if steps:
        report["memory"] = [sample._asdict() for sample in _watch(folder, _small(digits, steps))]
    return report


def describe(report: Report) -> str:
    """The numbers as text."""
    saves, waits, agreement = report["saves"], report["waits"], report["agreement"]
    lines = [
        f"{platform.machine()}, {psutil.cpu_count()} cores, jax {jax.__version__}",
        f"a checkpoint of {saves['megabytes']:.0f} MB takes {saves['save_s']:.2f} s to write; steps without one take "
        f"{saves['without_ms']:.0f} ms, with one every {SAVED_EVERY} steps {saves['with_ms']:.0f} ms: "
        f"{saves['with_ms'] / saves['without_ms'] - 1:+.1%} (medians of runs in turn)",
        f"waiting for data: {waits['data_share']:.2%} of the time of the digits' steps ({waits['step_ms']:.0f} ms a step)",
        f"asking whether to stop, {_PROCESSES} processes: {agreement['question_us']:.1f} us, "
        f"{agreement['share']:.4%} of such a step",
    ]
    if "memory" in report:
        samples = [Sample(**each) for each in report["memory"]]
        late = [each for each in samples if each.step >= _FROM]
        halves = late[: len(late) // 2], late[len(late) // 2 :]
        files, threads = (" and ".join(_range([each[at] for each in half]) for half in halves) for at in (2, 3))
        slope = np.polyfit([each.step for each in late], [each.resident for each in late], 1)[0]
        lines.append(
            f"memory over {samples[-1].step} steps: {late[0].resident / 1e6:.0f} MB after step {late[0].step}, "
            f"{late[-1].resident / 1e6:.0f} MB at the end; slope {slope * 1000 / 1e6:+.2f} MB in 1,000 steps; "
            f"in the first half and in the second {files} open files, {threads} threads"
        )
    return "\n".join(lines)


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}"


def _large(config: Config, width: int) -> Config:
    """The digits' model, wider: its checkpoint takes a while to write. Batches are short."""
    model = dataclasses.replace(config.model, hidden_size=width, intermediate_size=4 * width, num_attention_heads=8)
    model = dataclasses.replace(model, num_key_value_heads=8)
    compute = dataclasses.replace(config.compute, remat="none")
    data = dataclasses.replace(config.data, rows=2)
    return dataclasses.replace(config, model=model, data=data, compute=compute, optimizer=OptimizerConfig())


def _small(config: Config, steps: int) -> Config:
    """The digits with short batches, saved and reported often."""
    data = dataclasses.replace(config.data, rows=2)
    return dataclasses.replace(config, data=data, train=_train(config, steps=steps, log_every=50, checkpoint_every=500))


def _train(config: Config, **changes: Any) -> TrainConfig:  # Any: fields have different types
    return dataclasses.replace(config.train, **changes)


def _measure_saves(folder: Path, config: Config, repeats: int) -> Report:
    """Runs with and without checkpoints in turn."""
    with_, without = list[float](), list[float]()
    settings = functools.partial(_train, config, steps=STEPS, log_every=1)
    for _ in range(repeats):
        for times, every in ((without, STEPS * 10), (with_, SAVED_EVERY)):
            run = dataclasses.replace(config, train=settings(checkpoint_every=every))
            times.append(_step_seconds(run, folder / "saves"))
    checkpoint = max((folder / "saves" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return {
        "without_ms": 1000 * statistics.median(without),
        "with_ms": 1000 * statistics.median(with_),
        "megabytes": size / 1e6,
        "save_s": _save_seconds(config, folder / "saves"),
    }


def _step_seconds(config: Config, workdir: Path) -> float:
    """The mean time of a step, saves and all, without the first ones and the end."""
    shutil.rmtree(workdir, ignore_errors=True)
    train(config, workdir)
    reports = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    late = [report for report in reports if _WARM <= report["step"] < config.train.steps]
    return sum(sum(value for name, value in each.items() if name.startswith("seconds/")) for each in late) / len(late)


def _save_seconds(config: Config, workdir: Path) -> float:
    """How long it takes to write such a checkpoint, with nothing beside it."""
    mesh = sharding.make_mesh(config.mesh)
    state, iterator = init_state(config, mesh), make_iterator(config, mesh, make_processor(config))
    lanes = jax.make_array_from_process_local_data(sharding.batch_sharding(mesh), iterator.states)
    iterator.close()
    times = []
    with Checkpoints(workdir / "alone", config) as checkpoints:
        for step in range(1, 6):
            began = time.monotonic()
            checkpoints.save(step, state, lanes)
            checkpoints.wait()
            times.append(time.monotonic() - began)
    return statistics.median(times[1:])


def _measure_waits(folder: Path, config: Config) -> Report:
    config = dataclasses.replace(config, train=_train(config, steps=80, log_every=10, checkpoint_every=1000))
    shutil.rmtree(folder / "waits", ignore_errors=True)
    train(config, folder / "waits")
    reports = [json.loads(line) for line in (folder / "waits" / "metrics.jsonl").read_text().splitlines()][1:]
    data, step = (sum(report[f"seconds/{name}"] for report in reports) for name in ("data", "step"))
    return {"data_share": data / (data + step), "step_ms": 1000 * (data + step) / (10 * len(reports))}


_ASK = f"""
import sys, time
from owl3_jax.host.distributed import ProcessFlags, start_processes
from owl3_jax.host.signals import StopSignal
with start_processes(ProcessFlags(sys.argv[1], {_PROCESSES}, int(sys.argv[2]))):
    import jax
    jax.devices()
    with StopSignal() as stop:
        began = time.monotonic()
        for _ in range({_QUESTIONS}):
            assert not stop.must_stop()
        print((time.monotonic() - began) / {_QUESTIONS} * 1e6)
"""


def _measure_agreement(step_ms: float) -> Report:
    address = f"127.0.0.1:{free_port()}"
    run = functools.partial(subprocess.Popen, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    processes = [run([sys.executable, "-c", _ASK, address, str(number)]) for number in range(_PROCESSES)]
    outputs = [process.communicate()[0] for process in processes]
    question_us = max(float(output.splitlines()[-1]) for output in outputs)
    return {"question_us": question_us, "share": question_us / 1000 / step_ms}


def _watch(folder: Path, config: Config) -> list[Sample]:
    """A run in this process, looked at after every report."""
    workdir, samples, done = folder / "memory", list[Sample](), threading.Event()
    shutil.rmtree(workdir, ignore_errors=True)
    watching = threading.Thread(target=_sample, args=(workdir / "metrics.jsonl", samples, done.is_set))
    watching.start()
    train(config, workdir)
    done.set()
    watching.join()
    return samples


def _sample(metrics: Path, samples: list[Sample], is_done: Callable[[], bool]) -> None:
    process = psutil.Process()
    while not is_done():
        time.sleep(0.2)
        if metrics.exists() and (lines := metrics.read_text().splitlines()):
            step = json.loads(lines[-1])["step"]
            if not samples or step > samples[-1].step:
                samples.append(Sample(step, process.memory_info().rss, process.num_fds(), process.num_threads()))
