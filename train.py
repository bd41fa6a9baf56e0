"""Trains a model, or goes on where an earlier run in the same workdir stopped.

    python train.py --config configs/digits.py --workdir runs/digits --config.train.steps=100

Compiled programs are kept in the user's cache directory, or in JAX_COMPILATION_CACHE_DIR, for the next start.
"""

import dataclasses
import sys
from pathlib import Path

from owl3_jax import command_line
from owl3_jax.compilation_cache import use_compilation_cache
from owl3_jax.config import ConfigError
from owl3_jax.training.checkpoint import CheckpointError
from owl3_jax.training.loop import NonFiniteError, train


@dataclasses.dataclass(frozen=True)
class Flags:
    """Trains the model of a config in a workdir, or resumes the run that is there."""

    workdir: Path  # checkpoints, metrics and the resolved config of this run


def main() -> None:
    """Reads the command line and trains."""
    config, flags = command_line.parse(Flags)
    use_compilation_cache()
    try:
        train(config, flags.workdir)
    except (ConfigError, CheckpointError, NonFiniteError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
