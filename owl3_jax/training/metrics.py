"""What a run reports: means over the steps since the last report, as text, JSON lines and TensorBoard events."""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from owl3_jax.host.files import write_text

Values = dict[str, float]

VALIDATION = ("heldout/", "eval/")  # what the names of its metrics begin with

_WORTH_A_WORD = 0.02  # share of the time


class Window:
    """The metrics of the steps since the last report. They stay on the device until they are reported."""

    def __init__(self, sources: Sequence[str] = ()) -> None:
        """`sources` are the names of those that the training data is from."""
        self._sources = sources
        self._steps: list[Mapping[str, jax.Array]] = []

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """The metrics of one more step, which may still be running."""
        self._steps.append(metrics)

    def wait(self) -> None:
        """Until the last step is done."""
        jax.block_until_ready(self._steps)

    def take(self, seconds: float) -> Values:
        """Waits for the last step, and starts a new window. All of this one took `seconds`."""
        steps, self._steps = jax.device_get(self._steps), []
        return summarize(steps, seconds, self._sources)


def summarize(steps: Sequence[Mapping[str, np.ndarray]], seconds: float, sources: Sequence[str] = ()) -> Values:
    """One report on several steps, which took `seconds` together.

    `loss` and `accuracy` are means over target tokens, norms over steps, both without bad steps; `learning_rate` and
    `bad_steps` are the last step's. Of several sources, each has its own loss too, unless it had no target tokens.
    """
    columns = {name: np.array([step[name] for step in steps], np.float64) for name in steps[0]}
    good = columns["is_bad"] == 0
    last = {name: float(columns[name][-1]) for name in ("learning_rate", "bad_steps")}
    rates = {f"{name}_per_second": float(columns[name].sum() / seconds) for name in ("tokens", "images")}
    columns = {name: column[good] for name, column in columns.items()}
    targets = max(columns["target_tokens"].sum(), 1.0)
    norms = [name for name in columns if name.startswith(("grad_norm", "update_norm"))]
    return {
        "loss": float(columns["loss"] @ columns["target_tokens"] / targets) if good.any() else math.nan,
        "accuracy": float(columns["accuracy"] @ columns["target_tokens"] / targets),
        **last,
        **{name: float(columns[name].mean()) if good.any() else math.nan for name in norms},
        **rates,
        **_source_losses(columns, sources),
    }


def _source_losses(columns: Mapping[str, np.ndarray], sources: Sequence[str]) -> Values:
    if "source_losses" not in columns:
        return {}
    losses, targets = columns["source_losses"], columns["source_target_tokens"]  # [steps, Q]
    sums, counts = (losses * targets).sum(axis=0), targets.sum(axis=0)
    return {f"loss/{name}": float(total / count) for name, total, count in zip(sources, sums, counts, strict=True) if count}


def format_values(values: Values) -> str:
    """One report as text."""
    parts = [
        f"loss {values['loss']:.4f}",
        f"accuracy {values['accuracy']:.3f}",
        f"learning rate {values['learning_rate']:.2e}",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"{values['images_per_second']:,.0f} images/s",
    ]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    if (waits := values["seconds/data"] / max(sum(_seconds(values)), 1e-9)) >= _WORTH_A_WORD:
        parts.append(f"{waits:.0%} of the time waiting for data")
    if values["bad_steps"]:
        parts.append(f"{values['bad_steps']:.0f} bad steps")
    if values["skipped_samples"]:
        parts.append(f"{values['skipped_samples']:.0f} samples skipped")
    return "  ".join(parts)


def _seconds(values: Values) -> list[float]:
    return [value for name, value in values.items() if name.startswith("seconds/")]


class MetricsFiles:
    """`metrics.jsonl` and `tensorboard/` of a workdir. A context manager.

    Opened to continue after `step`: reports on later steps, from an earlier run that was stopped after its last checkpoint,
    are removed, so that no step appears twice.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._workdir = workdir
        self._open(step)

    def __enter__(self) -> "MetricsFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.closing(self._events), contextlib.closing(self._lines):
            pass

    def _open(self, step: int) -> None:
        path = self._workdir / "metrics.jsonl"
        _drop_lines_after(path, step)
        self._lines = path.open("a")
        self._events = _EventFile(self._workdir / "tensorboard", step)

    def has_validation(self, step: int) -> bool:
        """Whether there is a report on the validation of the parameters after `step`."""
        lines = map(json.loads, (self._workdir / "metrics.jsonl").read_text().splitlines())
        return any(line["step"] == step and any(name.startswith(VALIDATION) for name in line) for line in lines)

    def go_back_to(self, step: int) -> None:
        """Removes reports on later steps."""
        self.__exit__()
        self._open(step)

    def write(self, step: int, values: Values) -> None:
        """Appends one report, which others can read at once."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        self._events.write(step, values)


class _EventFile:
    """A file of TensorBoard's events.

    Everything is written at once, and what goes wrong is raised: SummaryWriter hands events to a thread, and once that has died
    of a full disk, waits for it without end.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """TensorBoard hides what earlier files there have on steps after this one."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")  # its own name has only whole seconds
        start = Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.write_event(start)
        self._file.flush()
        self._is_closed = False

    def write(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._file.flush()

    def close(self) -> None:
        """A second time does nothing, also when the first has failed."""
        if not self._is_closed:
            self._is_closed = True
            self._file.close()


def _drop_lines_after(path: Path, step: int) -> None:
    """Also drops an incomplete last line, as a killed process leaves it."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    write_text(path, "".join(kept))
