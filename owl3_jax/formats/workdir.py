"""A training run's workdir, as far as its last parameters go; `owl3_jax.training.checkpoint` writes it.

checkpoints/STEP/params/  the parameters, an orbax checkpoint
checkpoints/STEP/ema/     the same with their moving average, if the run has one
checkpoints/STEP/run/     the run's Config, and where the parameters are that are not in params/
tokenizer.json, ...       other files of the run
"""

from pathlib import Path
from typing import NamedTuple

from owl3_jax.config import ConfigError, JsonTree, ModelConfig
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, load_dataclass, read_json_object

CHECKPOINTS = "checkpoints"
EMA = "ema"


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


class Base(NamedTuple):
    """Where a run's frozen parameters are that its checkpoints do not hold."""

    directory: Path
    dtype: str | None  # in which the run has them; None: as they are


def read_run_model(checkpoint: Path) -> ModelConfig:
    """The architecture that a run's checkpoint was made with.

    Raises CheckpointError when its description cannot be read.
    """
    try:
        run = _read_run(checkpoint)
        return load_dataclass(ModelConfig, "config.model", run["config"].get("model"))
    except (JsonError, ConfigError) as error:
        raise _damaged(checkpoint, error) from error


def read_run_base(checkpoint: Path) -> Base | None:
    """Where the parameters are that a run's checkpoint lacks; None when it has all of them.

    Raises CheckpointError when its description cannot be read.
    """
    try:
        base = _read_run(checkpoint).get("base")
        if base is None:
            return None
        check(isinstance(base, dict) and isinstance(base.get("directory"), str), "base", base, "an object with a directory")
        return Base(Path(base["directory"]), base.get("dtype"))
    except JsonError as error:
        raise _damaged(checkpoint, error) from error


def _read_run(checkpoint: Path) -> JsonTree:
    run = read_json_object(checkpoint / "run" / "metadata")  # a name that orbax chose
    check(isinstance(run.get("config"), dict), "config", run.get("config"), "an object, {...}")
    return run


def _damaged(checkpoint: Path, error: ValueError) -> CheckpointError:
    return CheckpointError(checkpoint, [f"run/metadata: {error}; if it is damaged, delete this directory"])
