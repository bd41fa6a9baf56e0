"""Trains a model, or resumes an earlier run in the same workdir.

    owl3 train --config configs/digits.py --workdir runs/digits --config.train.steps=100
    owl3 train --config configs/digits.py --workdir runs/digits --dry-run
    owl3 train --config configs/digits.py --workdir runs/profile --config.train.steps=20 --profile

Compiled programs are kept in the user's cache directory, or in JAX_COMPILATION_CACHE_DIR, for the next start.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from owl3_jax.config import Config, ConfigError
from owl3_jax.data.skipped import TooManySkippedError
from owl3_jax.evaluation.data_root import DataError
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.host import command_line
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.host.distributed import DistributedError, ProcessFlags, start_processes
from owl3_jax.training.checkpoint import SavedRunError
from owl3_jax.training.compiled_step import CompiledStepError
from owl3_jax.training.dry_run import dry_run
from owl3_jax.training.loop import BadStepError, UnreliableError, train
from owl3_jax.training.start import resolve_start
from owl3_jax.training.validation import Scorer

# Errors whose messages say what to do.
_OF_THE_CONFIG = (ConfigError, CheckpointError, CompiledStepError, DataError, DistributedError, OSError)
_OF_THE_RUN = (SavedRunError, BadStepError, UnreliableError, TooManySkippedError)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Trains the model of a config in a workdir, or resumes the run that is there."""

    workdir: Path  # checkpoints, metrics and the resolved config of this run
    distributed: ProcessFlags = dataclasses.field(default_factory=ProcessFlags)
    profiler_port: int | None = None  # port on which each process serves profiles while it runs
    profile: bool = False  # trace a few steps into profile/ of the workdir, and print at the end which parts their time went to
    dry_run: bool = False  # only say what would run: shapes, shardings, memory, the first batch; nothing is trained
    compiled: Path | None = None  # train step of `owl3 compile --save`; it is executed, so use only your own


def _scorer(config: Config, workdir: Path) -> Scorer | None:
    if not config.validation.tasks:
        return None
    from owl3_jax.evaluation.along import TaskScorer

    return TaskScorer(resolve_start(config), workdir)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and trains."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 train")
    use_compilation_cache()
    try:
        with start_processes(flags.distributed):
            if flags.profiler_port:
                jax.profiler.start_server(flags.profiler_port)
            if flags.dry_run:
                for line in dry_run(config, flags.workdir):
                    if jax.process_index() == 0:
                        print(line, flush=True)
                return
            train(config, flags.workdir, flags.compiled, scorer=_scorer(config, flags.workdir), profile=flags.profile)
    except (*_OF_THE_CONFIG, *_OF_THE_RUN) as error:
        sys.exit(f"error: {error}")
