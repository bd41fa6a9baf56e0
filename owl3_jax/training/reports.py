"""What a run says of itself: a line on the terminal, metrics.jsonl, TensorBoard and accounts.json."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import jax
import psutil

from owl3_jax.batch import Batch
from owl3_jax.config import Config
from owl3_jax.data.pipeline import TrainIterator
from owl3_jax.flops import Work, peak_flops, train_flops
from owl3_jax.host.progress import Progress
from owl3_jax.training.accounts import Accounts, Activity, Stopwatch
from owl3_jax.training.frozen import trained_patterns
from owl3_jax.training.gradients import Metrics
from owl3_jax.training.metrics import MetricsFiles, Values, Window, format_values
from owl3_jax.training.trackers import Tracker, open_trackers

_REPORTED: tuple[Activity, ...] = ("step", "data", "save", "evaluation")
_NOTHING = Work(0, 0, 0, 0, 0)


class Files(NamedTuple):
    """Those of a workdir; the first process writes them."""

    metrics: MetricsFiles
    accounts: Accounts
    trackers: list[Tracker]

    @classmethod
    def of(cls, config: Config, workdir: Path, stopwatch: Stopwatch, step: int) -> "Files":
        """To go on after `step`. Raises ConfigError for a service that is not installed."""
        trackers = open_trackers(config.train.trackers, config, workdir)
        return cls(MetricsFiles(workdir, step), Accounts(workdir, stopwatch, step), trackers)


class Reporter:
    """Gathers the metrics of steps, and reports on them. A context manager."""

    def __init__(
        self, config: Config, iterator: TrainIterator, stopwatch: Stopwatch, progress: Progress, files: Files | None
    ) -> None:
        """`files` are None in all processes but the first."""
        self._config, self._iterator, self.stopwatch, self._progress, self._files = (
            config,
            iterator,
            stopwatch,
            progress,
            files,
        )
        self._window = Window([source.label for source in config.data.sources])
        self._work, self._batches = _NOTHING, 0  # of the batches since the last report
        self._before = stopwatch.seconds()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Reporter":
        if self._files is not None:
            self._stack.enter_context(self._files.metrics)
            self._stack.enter_context(self._files.accounts)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for tracker in self._files.trackers if self._files is not None else ():
            tracker.close(failed=error is not None)
        self._stack.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Prints a line, in the first process."""
        self._progress.say(line)

    def count(self, batch: Batch) -> None:
        """The rows of a step that this process has."""
        if self._files is not None:
            self._work = self._work.plus(Work.of_batch(self._config.model, batch))
            self._batches += 1

    def add(self, metrics: Metrics) -> None:
        """The metrics of one more step, which may still be running."""
        self._window.add(metrics)
        self._progress.advance()

    def report(self, step: int) -> None:
        """On the steps since the last report; waits for this one."""
        self._window.wait()
        now = self.stopwatch.seconds()
        spent = {name: now[name] - self._before[name] for name in now}
        self._before = now
        training = spent["step"] + spent["data"] + spent["save"]
        values = self._window.take(training) | self._of_data() | self._of_devices(training)
        values |= {f"seconds/{name}": spent[name] for name in _REPORTED}
        for group in self._config.optimizer.groups:
            values[f"learning_rate/{'+'.join(group.match)}"] = values["learning_rate"] * group.learning_rate_scale
        self._progress.note(format_values(values))
        self._write(step, values)

    def mark(self, step: int) -> None:
        """Notes in accounts.json what is being done after this step: something that may take long."""
        if self._files is not None:
            self._files.accounts.write(step)

    def report_validation(self, step: int, values: Values) -> None:
        """What was found about the parameters after `step`."""
        self._progress.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self._write(step, values)

    def has_validation(self, step: int) -> bool:
        """Whether that was reported before; known to the first process."""
        return self._files is not None and self._files.metrics.has_validation(step)

    def go_back_to(self, step: int) -> None:
        """Forgets the steps after this one, which are taken again."""
        self._progress.say(f"back to step {step}, leaving out the batches since then")
        self._progress.advance(step - self._progress.done)
        self._window = Window([source.label for source in self._config.data.sources])
        if self._files is not None:
            self._files.metrics.go_back_to(step)

    def end(self, how: str, line: str) -> None:
        """Says how the run has ended, in a word for accounts.json and in a line."""
        if self._files is not None:
            self._files.accounts.ended = how
        self._progress.say(line)

    def _write(self, step: int, values: Values) -> None:
        if self._files is not None:
            self._files.metrics.write(step, values)
            self._files.accounts.write(step)
            for tracker in self._files.trackers:
                tracker.write(step, values)

    def _of_data(self) -> Values:
        counts, data = self._iterator.counts, self._config.data
        values = {"skipped_samples": float(counts.skipped)}
        values |= {f"epochs/{source}": epochs for source, epochs in self._iterator.epochs().items()}
        return values | {f"samples/{source.label}": float(counts.seen(number)) for number, source in enumerate(data.sources)}

    def _of_devices(self, seconds: float) -> Values:
        """Shares of the batches that are no padding and of the devices' peak; memory in use."""
        data, work, batches = self._config.data, self._work, self._batches
        self._work, self._batches = _NOTHING, 0
        memory = jax.local_devices()[0].memory_stats() or {}
        values = {"host_memory_gb": psutil.Process().memory_info().rss / 1e9}
        if "peak_bytes_in_use" in memory:
            values["memory_gb"] = memory["peak_bytes_in_use"] / 1e9
        if not batches:
            return values
        own = len(self._iterator.states)
        values["fill/tokens"] = work.tokens / (batches * own * data.tokens_per_row)
        values["fill/images"] = work.images / (batches * own * data.images_per_row)
        if peak := peak_flops(jax.devices()[0].device_kind):
            flops = train_flops(self._config.model, work, trained_patterns(self._config)) * data.rows / own
            values["mfu"] = flops / (seconds * peak * jax.device_count())
        return values
