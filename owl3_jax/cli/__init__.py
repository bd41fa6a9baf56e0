"""The command `owl3`."""

import io
import sys
from collections.abc import Sequence

from owl3_jax.cli.subcommands import run_subcommand

SUBCOMMANDS = {
    "demo": "ask the checkpoint that ships with the package about handwritten digits",
    "train": "train the model of a config in a workdir, or resume the run that is there",
    "runs": "say where training runs stand, and draw their curves on one page",
    "eval": "score a model on benchmarks, or answers that exist",
    "compare": "compare two evaluations: differences with their intervals, and the samples that changed",
    "generate": "answer a prompt about images and videos, or a file of them",
    "chat": "talk about images and videos in the terminal",
    "serve": "answer many users at once, by OpenAI's API and on a page",
    "serve-bench": "measure a server under the load of many users with image sequences",
    "data": "check data before training, or write it as files that are read fast",
    "convert": "convert a released checkpoint to what this project reads, or back",
    "parity": "compare the model's numbers with those of another implementation",
    "compile": "compile a run for TPUs that you do not have, and report what it needs of each chip",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand with the arguments after its name; those of the process by default.

    Without one it lists them. An unknown one exits with code 2, Ctrl-C with 130.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: text that is no character ends no command
    arguments = list(sys.argv[1:] if argv is None else argv)
    modules = {name: f"owl3_jax.cli.{name.replace('-', '_')}" for name in SUBCOMMANDS}
    run_subcommand("owl3", "mPLUG-Owl3 in JAX.", SUBCOMMANDS, modules, arguments)
