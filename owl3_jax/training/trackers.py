"""Services that collect the metrics of runs: Weights & Biases and MLflow, where they are installed and asked for.

A run that resumes goes on in the same run of the service: its id is in the workdir.
"""

import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flax.traverse_util import flatten_dict

from owl3_jax.config import Config, ConfigError, TrackerName
from owl3_jax.host.files import write_text
from owl3_jax.training.metrics import Values

_PROJECT = "owl3_jax"


@runtime_checkable
class Tracker(Protocol):
    """What a run reports to."""

    def write(self, step: int, values: Values) -> None:
        """Sends one report."""

    def close(self, *, failed: bool) -> None:
        """Ends the service's run, as failed or finished."""


def open_trackers(names: Sequence[TrackerName], config: Config, workdir: Path) -> list[Tracker]:
    """Starts or resumes a run of each service. Raises ConfigError for one that is not installed."""
    return [_TRACKERS[name](config, workdir) for name in names]


class WandbTracker:
    """A run of Weights & Biases; its environment variables (WANDB_PROJECT, WANDB_MODE, ...) count."""

    def __init__(self, config: Config, workdir: Path) -> None:
        wandb, known = _load("wandb"), _known_id(workdir, "wandb")
        self._run = wandb.init(
            project=None if _is_set("WANDB_PROJECT") else _PROJECT,
            name=workdir.name,
            dir=str(workdir),
            id=known,
            resume="allow" if known else None,
            config=dataclasses.asdict(config),
        )
        _keep_id(workdir, "wandb", self._run.id)

    def write(self, step: int, values: Values) -> None:
        """As `Tracker`. Reports on steps that were taken before are ignored by the service."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """As `Tracker`."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """A run of MLflow; its environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) count."""

    def __init__(self, config: Config, workdir: Path) -> None:
        self._mlflow, known = _load("mlflow"), _known_id(workdir, "mlflow")
        if known is None and not _is_set("MLFLOW_EXPERIMENT_NAME"):
            self._mlflow.set_experiment(_PROJECT)
        run = self._mlflow.start_run(run_id=known, run_name=None if known else workdir.name)
        if known is None:
            settings = flatten_dict(dataclasses.asdict(config), sep=".")
            self._mlflow.log_params({name: str(value)[:_LONGEST] for name, value in settings.items()})
        _keep_id(workdir, "mlflow", run.info.run_id)

    def write(self, step: int, values: Values) -> None:
        """As `Tracker`."""
        named = {_allowed(name): value for name, value in values.items() if math.isfinite(value)}
        self._mlflow.log_metrics(named, step=step)

    def close(self, *, failed: bool) -> None:
        """As `Tracker`."""
        self._mlflow.end_run(status="FAILED" if failed else "FINISHED")


_TRACKERS: dict[TrackerName, Callable[[Config, Path], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}
_LONGEST = 500  # characters of a parameter's value in MLflow


def _allowed(name: str) -> str:
    """MLflow takes letters, digits and a few signs in the names of metrics."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _load(name: TrackerName) -> Any:  # Any: a module that need not be installed
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"train.trackers names {name}, which is not installed: pip install 'owl3_jax[{name}]'") from error


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _known_id(workdir: Path, name: TrackerName) -> str | None:
    path = workdir / f"{name}_id"
    return path.read_text().strip() if path.exists() else None


def _keep_id(workdir: Path, name: TrackerName, value: str) -> None:
    write_text(workdir / f"{name}_id", value)
