"""The command `owl3`: one module for each subcommand, imported when it is called, so that `owl3 --help` answers at once."""

import difflib
import importlib
import sys
from collections.abc import Sequence

SUBCOMMANDS = {
    "demo": "ask the checkpoint that ships with the package about handwritten digits",
    "train": "train the model of a config in a workdir, or resume the run that is there",
    "eval": "score the model of a workdir",
    "generate": "answer a prompt about images and videos, or a file of them",
    "chat": "talk about images and videos in the terminal",
    "convert": "convert a released checkpoint to what this project reads, or back",
    "parity": "compare the model's numbers with those of another implementation",
    "compile": "compile a run for TPUs that you do not have, and report what it needs of each chip",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand with the arguments after its name; those of the process by default.

    Without one it lists them. An unknown one exits with code 2, Ctrl-C with 130.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? owl3 --help lists all" if near else f"known subcommands: {', '.join(SUBCOMMANDS)}"
        print(f"error: unknown subcommand {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    try:
        importlib.import_module(f"owl3_jax.cli.{name}").main(rest)
    except KeyboardInterrupt:
        sys.exit(130)


def _help() -> str:
    width = max(map(len, SUBCOMMANDS))
    lines = [f"  {name:<{width}}   {what}" for name, what in SUBCOMMANDS.items()]
    return "\n".join(
        ["usage: owl3 SUBCOMMAND ...", "", "mPLUG-Owl3 in JAX.", "", *lines, "", "owl3 SUBCOMMAND --help lists flags."]
    )
