"""Says where training runs stand, and draws their curves on one page: `owl3 runs DIR...`."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tyro

from owl3_jax.host.files import unwritable, write_text
from owl3_jax.host.text_table import format_table
from owl3_jax.training.runs import RunsError, read_runs
from owl3_jax.training.runs_page import render_page
from owl3_jax.training.runs_summary import table_of


@dataclasses.dataclass(frozen=True)
class Flags:
    """Says where training runs stand, and draws the curves of all of them on one page that needs no other file."""

    directories: tyro.conf.Positional[tuple[Path, ...]]  # workdirs of runs, or folders with such one or two levels below
    output: Path = Path("runs.html")  # the page

    def __post_init__(self) -> None:
        if not self.directories:
            raise ValueError("no folder given: owl3 runs DIR..., each a workdir of owl3 train or a folder of such")
        if problem := unwritable(self.output.parent):
            raise ValueError(f"--output {self.output}: {problem}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table of the runs, and writes the page."""
    flags = tyro.cli(Flags, args=argv, prog="owl3 runs", description=Flags.__doc__)
    try:
        runs, now = read_runs(flags.directories), time.time()
        table = table_of(runs, now)
        print("\n".join(format_table([table.head, *table.rows], left=2)))
        print(f"\n{write_text(flags.output, render_page(runs, now))}")
    except (RunsError, OSError) as error:
        sys.exit(f"error: {error}")
