"""Evaluation on the way of a training run, with the run's own parameters where they are: no second copy is made.

The held-out loss is computed here. Scores of tasks come from `owl3_jax.evaluation`, which this package does not import: whoever
starts the run passes a `Scorer`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from owl3_jax import sharding
from owl3_jax.config import Config, ConfigError, DataConfig, SourceConfig
from owl3_jax.data.pipeline import iterate_batches
from owl3_jax.data.readers.records import Records
from owl3_jax.data.sources import open_source
from owl3_jax.host.signals import StoppedError
from owl3_jax.params import Params
from owl3_jax.processing.processor import Processor
from owl3_jax.training.gradients import make_loss_of_batch
from owl3_jax.training.loss import LossSums
from owl3_jax.training.metrics import Values
from owl3_jax.training.step import OnMesh


@runtime_checkable
class Scorer(Protocol):
    """Asks the questions of `validation.tasks`; all processes call it."""

    def __call__(self, params: Params, mesh: Mesh, processor: Processor, step: int, must_stop: Callable[[], bool]) -> Values:
        """`eval/TASK/METRIC` of each, the same in all processes. Raises StoppedError."""


def held_out(config: Config) -> DataConfig:
    """The data of the validation, in batches of the training's shape."""
    return dataclasses.replace(config.data, sources=config.validation.sources, workers=0)


class HeldOutLoss:
    """The loss on `validation.batches` batches, the same ones every time."""

    def __init__(self, config: Config, mesh: Mesh, processor: Processor) -> None:
        self._data, self._batches, self._mesh, self._processor = held_out(config), config.validation.batches, mesh, processor
        self._records: Mapping[SourceConfig, Records] = {each: open_source(each, self._data) for each in self._data.sources}
        self._loss = OnMesh(
            make_loss_of_batch(dataclasses.replace(config, data=self._data)), mesh, out_shardings=sharding.replicated(mesh)
        )

    def __call__(self, params: Params, must_stop: Callable[[], bool]) -> Values:
        """`heldout/loss` and `heldout/accuracy`, and of several sources `heldout/loss/SOURCE`. Raises StoppedError."""
        lanes = sharding.own_rows(self._mesh, self._data.rows)
        found: list[LossSums] = []
        with contextlib.closing(iterate_batches(self._records, self._data, self._processor, lanes)) as batches:
            for _ in range(self._batches):
                found.append(self._loss(params, sharding.shard_batch(next(batches), self._mesh)))
                jax.block_until_ready(found[-1])  # no more than one batch is on the device
                if must_stop():
                    raise StoppedError
        return _values(jax.device_get(found), [source.label for source in self._data.sources])


def _values(parts: Sequence[LossSums], sources: Sequence[str]) -> Values:
    nll = np.stack([part.nll for part in parts]).sum(axis=0, dtype=np.float64)  # [Q]
    weights = np.stack([part.weights for part in parts]).sum(axis=0, dtype=np.float64)
    total = max(float(weights.sum()), 1.0)
    correct = float(np.sum([part.correct for part in parts], dtype=np.float64))
    values = {"heldout/loss": float(nll.sum()) / total, "heldout/accuracy": correct / total}
    if len(sources) > 1:
        of_sources = zip(sources, nll, weights, strict=True)
        values |= {f"heldout/loss/{name}": float(loss / count) for name, loss, count in of_sources if count}
    return values


class Validation:
    """All that a run evaluates on its way."""

    def __init__(self, config: Config, mesh: Mesh, processor: Processor, scorer: Scorer | None) -> None:
        """Raises ConfigError when there are tasks, but no `scorer`."""
        settings = config.validation
        if settings.tasks and scorer is None:
            raise ConfigError("validation.tasks is set, and this run was started without a scorer of tasks")
        self._every, self._mesh, self._processor = settings.every, mesh, processor
        self._scorer = scorer if settings.tasks else None
        self._loss = HeldOutLoss(config, mesh, processor) if settings.sources else None

    def is_due(self, step: int) -> bool:
        """Whether the parameters after `step` are evaluated."""
        return self._every is not None and step % self._every == 0

    def __call__(self, params: Params, step: int, must_stop: Callable[[], bool]) -> Values:
        """Its metrics, the same in all processes. Raises StoppedError when the run has to stop."""
        values = self._loss(params, must_stop) if self._loss else {}
        return values | (self._scorer(params, self._mesh, self._processor, step, must_stop) if self._scorer else {})
