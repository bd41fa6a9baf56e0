"""The command `owl3 data`."""

from collections.abc import Sequence

from owl3_jax.cli.subcommands import run_subcommand

SUBCOMMANDS = {
    "check": "read everything and report what training would trip over",
    "prepare": "write sources as files that training reads fast",
}


def main(argv: Sequence[str]) -> None:
    """Runs a subcommand with the arguments after its name."""
    modules = {name: f"owl3_jax.cli.data_{name}" for name in SUBCOMMANDS}
    run_subcommand("owl3 data", "Data for training.", SUBCOMMANDS, modules, argv)
