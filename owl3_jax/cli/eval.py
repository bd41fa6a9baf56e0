"""Scores the model of a workdir: `owl3 eval --config configs/digits.py --workdir runs/digits`."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from owl3_jax.config import Config
from owl3_jax.convert.load import load_params
from owl3_jax.evaluation.answering import FailedPrompts
from owl3_jax.evaluation.run import evaluate
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.host import command_line
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.host.distributed import DistributedError, ProcessFlags, start_processes
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.memory import FAILURES
from owl3_jax.inference.runtime import Runtime
from owl3_jax.processing.processor import Processor
from owl3_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Flags:
    """Scores the model that `owl3 train` saved in a workdir."""

    workdir: Path  # the training run's workdir; results go to its folder `eval`
    distributed: ProcessFlags = dataclasses.field(default_factory=ProcessFlags)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line (by default the process's own), loads the model and scores it. Exits with 1 after an error."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 eval")
    use_compilation_cache()
    try:
        start_processes(flags.distributed)
        if config.start.inherit:  # the run has taken its model from there; its checkpoint says which
            config = dataclasses.replace(config, model=load_config(flags.workdir))
        evaluate(config, flags.workdir, functools.partial(load_engine, config, flags.workdir))
    except (*FAILURES, DistributedError, FailedPrompts) as error:
        sys.exit(f"error: {error}")


def load_engine(config: Config, workdir: Path, processor: Processor) -> Engine:
    """The model of a workdir on the mesh of its config."""
    mesh, compute = make_mesh(config.mesh), config.compute
    params = load_params(workdir, config.model, mesh, dtype=compute.param_dtype, vocab_multiple=compute.vocab_multiple)
    runtime = Runtime(config.model, compute, params, mesh, vision_batch_size=config.eval.images_per_batch)
    return Engine(runtime, processor.tokenizer)
