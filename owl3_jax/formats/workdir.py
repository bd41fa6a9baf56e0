"""A training run's workdir, as far as its last parameters go; `owl3_jax.training.checkpoint` writes it.

checkpoints/STEP/params/  the parameters, an orbax checkpoint
checkpoints/STEP/run/     the run's Config
tokenizer.json, ...       other files of the run
"""

import json
from pathlib import Path

import orbax.checkpoint as ocp

from owl3_jax.config import ModelConfig, load_json_tree
from owl3_jax.formats.weight_files import CheckpointError

CHECKPOINTS = "checkpoints"


def is_workdir(directory: Path) -> bool:
    """Whether this is the workdir of a training run."""
    return (directory / CHECKPOINTS).is_dir()


def last_checkpoint(workdir: Path) -> Path:
    """The directory of the last complete checkpoint.

    Raises CheckpointError when there is none.
    """
    directory = workdir / CHECKPOINTS
    steps = ocp.utils.checkpoint_steps(directory)
    if not steps:
        raise CheckpointError(workdir, [f"no complete checkpoint in {directory}: train first (train.py --workdir {workdir})"])
    return directory / str(max(steps))


def read_run_model(checkpoint: Path) -> ModelConfig:
    """The architecture that a run's checkpoint is of.

    Raises CheckpointError when it cannot be told.
    """
    try:
        run = json.loads((checkpoint / "run" / "metadata").read_text())  # a name that orbax chose
        return load_json_tree(ModelConfig, run["config"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(checkpoint, [f"run/metadata: {error!r}; if it is damaged, delete this directory"]) from error
