"""A training run's workdir, as far as its last parameters go; `owl3_jax.training.checkpoint` writes it.

checkpoints/STEP/params/  the parameters, an orbax checkpoint
checkpoints/STEP/run/     the run's Config
tokenizer.json, ...       other files of the run
"""

from pathlib import Path

from owl3_jax.config import ConfigError, ModelConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, load_dataclass, read_json_object

CHECKPOINTS = "checkpoints"


def is_workdir(directory: Path) -> bool:
    """Whether this is the workdir of a training run."""
    return (directory / CHECKPOINTS).is_dir()


def last_checkpoint(workdir: Path) -> Path:
    """The directory of the last complete checkpoint.

    Raises CheckpointError when there is none.
    """
    directory = workdir / CHECKPOINTS
    complete = [path for path in directory.iterdir() if _is_complete(path)]
    if not complete:
        raise CheckpointError(workdir, [f"no complete checkpoint in {directory}: train first (owl3 train --workdir {workdir})"])
    return max(complete, key=lambda path: int(path.name))


def _is_complete(path: Path) -> bool:
    """Whether orbax has finished this checkpoint.

    On a file system orbax writes to STEP.orbax-checkpoint-tmp-... and renames that to STEP once everything is on disk, so a
    directory whose name is a number is complete. (On object storage, where nothing can be renamed, it leaves a file that
    says so; a `Path` never points there.)
    """
    return path.name.isascii() and path.name.isdigit() and path.is_dir()


def read_run_model(checkpoint: Path) -> ModelConfig:
    """The architecture that a run's checkpoint was made with.

    Raises CheckpointError when its description cannot be read.
    """
    try:
        run = read_json_object(checkpoint / "run" / "metadata")  # a name that orbax chose
        config = run.get("config")
        check(isinstance(config, dict), "config", config, "an object, {...}")
        return load_dataclass(ModelConfig, "config.model", run["config"].get("model"))
    except (JsonError, ConfigError) as error:
        raise CheckpointError(checkpoint, [f"run/metadata: {error}; if it is damaged, delete this directory"]) from error
