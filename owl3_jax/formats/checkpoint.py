"""Which kind of checkpoint a directory is, and the architecture that it holds."""

from pathlib import Path

from owl3_jax.config import ModelConfig
from owl3_jax.formats.config_json import CONFIG, read_config_json
from owl3_jax.formats.converted import is_converted, read_model
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.workdir import is_workdir, last_checkpoint, read_run_model

_NO_CHECKPOINT = (
    "it has no config.json (of an official checkpoint), no model.json with params/ (of a converted one) "
    "and no checkpoints/ (of a training run: train first)"
)


def is_stored(directory: Path) -> bool:
    """Whether the parameters are in orbax's format: a converted directory or a training run's workdir."""
    return is_workdir(directory) or is_converted(directory)


def load_config(directory: Path) -> ModelConfig:
    """The architecture of a checkpoint directory of any kind; of a training run it is that of the last checkpoint.

    Raises CheckpointError when the directory is not a checkpoint, or the description of its model is missing or damaged.
    """
    if is_workdir(directory):
        return read_run_model(last_checkpoint(directory))
    if is_converted(directory):
        return read_model(directory)[0]
    if not (directory / CONFIG).exists():
        raise CheckpointError(directory, [_NO_CHECKPOINT])
    return read_config_json(directory)
