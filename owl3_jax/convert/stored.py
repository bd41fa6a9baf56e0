"""Parameters that this project wrote itself, in a converted directory or a training run's workdir, opened alike."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from owl3_jax.config import ModelConfig
from owl3_jax.convert.orbax_params import StoredParameter, open_params
from owl3_jax.formats.converted import PARAMS, read_model, read_unused
from owl3_jax.formats.weight_files import Tensor
from owl3_jax.formats.workdir import is_workdir, last_checkpoint, read_run_model


class StoredCheckpoint(NamedTuple):
    """A checkpoint in orbax's format; nothing of it is in memory before it is read."""

    config: ModelConfig
    parameters: dict[str, StoredParameter]  # by path, "/" between levels
    unused: tuple[Tensor, ...]  # official tensors that the model never reads; a trained model has none
    tied_head: bool  # whether the official files hold the embedding twice


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
