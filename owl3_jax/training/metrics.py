"""What a run reports: means over the steps since the last report, as text, JSON lines and TensorBoard events."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter

from owl3_jax.host.files import write_text

Values = dict[str, float]


class Window:
    """The metrics of the steps since the last report. They stay on the device until they are reported."""

    def __init__(self, sources: Sequence[str] = ()) -> None:
        """`sources` are the names of those that the training data is from."""
        self._sources = sources
        self._steps: list[Mapping[str, jax.Array]] = []
        self._began = time.monotonic()

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """The metrics of one more step, which may still be running."""
        self._steps.append(metrics)

    def take(self) -> Values:
        """Waits for the last step, and starts a new window."""
        steps = jax.device_get(self._steps)
        values = summarize(steps, time.monotonic() - self._began, self._sources)
        self._steps, self._began = [], time.monotonic()
        return values


def summarize(steps: Sequence[Mapping[str, np.ndarray]], seconds: float, sources: Sequence[str] = ()) -> Values:
    """One report on several steps, which took `seconds` together.

    `loss` and `accuracy` are means over target tokens, `grad_norm` over steps; `learning_rate` is the last step's. Of several
    sources, each has its own loss too, unless it had no target tokens.
    """
    columns = {name: np.array([step[name] for step in steps], np.float64) for name in steps[0]}
    targets = max(columns["target_tokens"].sum(), 1.0)
    return {
        "loss": float(columns["loss"] @ columns["target_tokens"] / targets),
        "accuracy": float(columns["accuracy"] @ columns["target_tokens"] / targets),
        "learning_rate": float(columns["learning_rate"][-1]),
        "grad_norm": float(columns["grad_norm"].mean()),
        "tokens_per_second": float(columns["tokens"].sum() / seconds),
        "images_per_second": float(columns["images"].sum() / seconds),
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
    skipped = f"  {values['skipped_samples']:.0f} samples skipped" if values["skipped_samples"] else ""
    return (
        f"loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}  learning rate {values['learning_rate']:.2e}"
        f"  {values['tokens_per_second']:,.0f} tokens/s  {values['images_per_second']:,.0f} images/s{skipped}"
    )


class MetricsFiles:
    """`metrics.jsonl` and `tensorboard/` of a workdir. A context manager.

    Opened to continue after `step`: reports on later steps, from an earlier run that was stopped after its last checkpoint,
    are removed, so that no step appears twice.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / "metrics.jsonl"
        _drop_lines_after(path, step)
        self._lines = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()
        self._events.close()

    def write(self, step: int, values: Values) -> None:
        """Appends one report, which others can read at once."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()


def _drop_lines_after(path: Path, step: int) -> None:
    """Also drops an incomplete last line, as a killed process leaves it."""
    if not path.exists():
        return
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    write_text(path, "".join(kept))
