"""Scores the model of a workdir on held-out images.

    python eval.py --config configs/digits.py --workdir runs/digits

Prints the scores and writes them to `WORKDIR/eval/`: report.json, exact_match.png, distractor_resistance.png, and samples.png
with questions, their pictures and the model's answers.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax

from owl3_jax import sharding
from owl3_jax.config import Config, ConfigError
from owl3_jax.convert.load import load_params
from owl3_jax.data import load_tokenizer
from owl3_jax.evaluation.evaluate import evaluate
from owl3_jax.evaluation.runner import Generate
from owl3_jax.formats.weight_files import CheckpointError
from owl3_jax.host import command_line
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.host.distributed import DistributedError, ProcessFlags, start_processes
from owl3_jax.inference.generate import generate
from owl3_jax.inference.runtime import Params, Runtime
from owl3_jax.processing.images import UnreadableImage


@dataclasses.dataclass(frozen=True)
class Flags:
    """Scores the model that train.py left in a workdir."""

    workdir: Path  # of the training run; results go to its folder `eval`
    distributed: ProcessFlags = dataclasses.field(default_factory=ProcessFlags)


def main() -> None:
    """Reads the command line, loads the model and scores it."""
    config, flags = command_line.parse(Flags)
    use_compilation_cache()
    try:
        start_processes(flags.distributed)
        mesh = sharding.make_mesh(config.mesh)
        compute = config.compute
        params = load_params(
            flags.workdir, config.model, mesh, dtype=compute.param_dtype, vocab_multiple=compute.vocab_multiple
        )
        evaluate(config, make_generate(config, params, mesh), flags.workdir / "eval", rows_divisor=sharding.rows_divisor(mesh))
    except (ConfigError, CheckpointError, DistributedError, UnreadableImage) as error:
        sys.exit(f"error: {error}")


def make_generate(config: Config, params: Params, mesh: jax.sharding.Mesh) -> Generate:
    """The greedy answers of the model with `params`, on `mesh`."""
    runtime = Runtime(config.model, config.compute, params, mesh, vision_batch_size=config.eval.images_per_batch)
    length, stop_ids = config.eval.max_new_tokens, load_tokenizer(config.data).stop_ids
    return functools.partial(generate, runtime, max_new_tokens=length, stop_ids=stop_ids)


if __name__ == "__main__":
    main()
