"""What this project wrote itself, a converted directory or a training run's workdir, opened alike."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from owl3_jax.config import ModelConfig
from owl3_jax.convert.converted import PARAMS, is_converted, read_model, read_unused
from owl3_jax.convert.orbax_params import StoredParameter, open_params
from owl3_jax.formats.weight_files import Tensor
from owl3_jax.formats.workdir import is_workdir, last_checkpoint, read_run_model


class StoredCheckpoint(NamedTuple):
    """A checkpoint in orbax's format; nothing of it is in memory before it is read."""

    config: ModelConfig
    parameters: dict[str, StoredParameter]  # by path, "/" between levels
    unused: tuple[Tensor, ...]  # official tensors that the model never reads; a trained model has none
    tied_head: bool  # whether the official files hold the embedding twice


def is_stored(directory: Path) -> bool:
    """Whether `open_stored` takes this directory."""
    return is_workdir(directory) or is_converted(directory)


def read_stored_config(directory: Path) -> ModelConfig:
    """The architecture of a converted directory or of a workdir's last checkpoint.

    Raises CheckpointError when the directory does not tell it.
    """
    return read_run_model(last_checkpoint(directory)) if is_workdir(directory) else read_model(directory)[0]


def open_stored(directory: Path, dtype: np.dtype | None = None) -> StoredCheckpoint:
    """A converted directory or a workdir's last checkpoint, to be read in `dtype` (default: as stored).

    Raises CheckpointError listing everything that is wrong with it.
    """
    if is_workdir(directory):
        checkpoint = last_checkpoint(directory)
        config = read_run_model(checkpoint)
        return StoredCheckpoint(config, open_params(checkpoint / "params", config, dtype), (), tied_head=False)
    config, tied_head = read_model(directory)
    parameters = open_params(directory / PARAMS, config, dtype)
    return StoredCheckpoint(config, parameters, tuple(read_unused(directory)), tied_head)
