"""Parameters that this project wrote itself, in a converted directory or a training run's workdir, opened alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from owl3_jax.config import ModelConfig
from owl3_jax.convert.merged import Readable
from owl3_jax.convert.official import open_checkpoint
from owl3_jax.convert.orbax_params import NO_BASE, open_params
from owl3_jax.formats.checkpoint import is_stored
from owl3_jax.formats.converted import PARAMS, read_model, read_unused
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import Tensor
from owl3_jax.formats.workdir import CHECKPOINTS, EMA, is_workdir, last_checkpoint, read_run_base, read_run_model


class StoredCheckpoint(NamedTuple):
    """A checkpoint in orbax's format; nothing of it is in memory before it is read."""

    config: ModelConfig
    parameters: Mapping[str, Readable]  # by path, "/" between levels
    unused: tuple[Tensor, ...]  # official tensors that the model never reads; a trained model has none
    tied_head: bool  # whether the official files hold the embedding twice


def open_stored(
    directory: Path, dtype: np.dtype | None = None, *, ema: bool = False, step: int | None = None
) -> StoredCheckpoint:
    """A converted directory or a workdir's last checkpoint, to be read in `dtype` (default: as stored).

    Of a run, `ema` takes the moving average of its parameters, and `step` the checkpoint of that step.

    Raises CheckpointError listing everything that is wrong with it.
    """
    if ema and not (is_workdir(directory) and (last_checkpoint(directory) / EMA).exists()):
        raise CheckpointError(directory, ["it has no moving average of parameters: a run has one with train.ema_decay"])
    if is_workdir(directory):
        checkpoint = last_checkpoint(directory) if step is None else directory / CHECKPOINTS / str(step)
        config = read_run_model(checkpoint)
        parameters = open_params(checkpoint / (EMA if ema else PARAMS), config, dtype, _base_of(checkpoint, config, dtype))
        return StoredCheckpoint(config, parameters, (), tied_head=False)
    config, tied_head = read_model(directory)
    parameters = open_params(directory / PARAMS, config, dtype)
    return StoredCheckpoint(config, parameters, tuple(read_unused(directory)), tied_head)


def open_parameters(directory: Path, config: ModelConfig, dtype: np.dtype | None = None) -> Mapping[str, Readable]:
    """The parameters of a checkpoint directory of any kind, by path; see `open_stored`."""
    if is_stored(directory):
        return open_stored(directory, dtype).parameters
    return open_checkpoint(directory, config, dtype).parameters


def _base_of(checkpoint: Path, config: ModelConfig, dtype: np.dtype | None) -> Mapping[str, Readable]:
    """The parameters of the checkpoint that a run started from, if its own hold only what it trained."""
    base = read_run_base(checkpoint)
    if base is None:
        return NO_BASE
    if not base.directory.is_dir():
        problem = f"it holds what was trained alone; the rest is in {base.directory}, which is not there: put it back"
        raise CheckpointError(checkpoint, [problem])
    return open_parameters(base.directory, config, dtype or (np.dtype(base.dtype) if base.dtype else None))
