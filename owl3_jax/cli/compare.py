"""Compares two evaluations on the questions that both were asked: `owl3 compare RUN_A RUN_B --html changed.html`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from owl3_jax.data.cards import render
from owl3_jax.evaluation.comparison import Comparison, changed, compare, pair_up
from owl3_jax.evaluation.question import Answered
from owl3_jax.evaluation.samples import read_samples
from owl3_jax.host.command_line import exit_with_usage_error
from owl3_jax.host.files import unwritable, write_text
from owl3_jax.host.text_table import format_table

_PRINTED, _ON_PAGE = 5, 500  # changed samples


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compares two evaluations: difference with its interval, McNemar's test, and the samples that changed."""

    first: tyro.conf.Positional[Path]  # the --output of an evaluation
    second: tyro.conf.Positional[Path]  # another one
    html: Path | None = None  # the samples that changed, side by side, as a page

    def __post_init__(self) -> None:
        if self.html is not None and (problem := unwritable(self.html.parent)):
            raise ValueError(f"--html {self.html}: {problem}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the comparison of two runs, and writes the page."""
    try:
        flags = tyro.cli(Flags, args=argv, prog="owl3 compare", description=Flags.__doc__)
    except ValueError as error:
        exit_with_usage_error(error)
    try:
        pairs = pair_up(read_samples(flags.first), read_samples(flags.second))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    comparisons, different = compare(pairs), changed(pairs)
    print("\n".join(format_table([_HEAD, *map(_row, comparisons)])))
    print(f"\n{len(different)} of {len(pairs)} samples have another score" + (", for example:" if different else ""))
    for pair in different[:_PRINTED]:
        print(
            f"  {pair.task} {pair.first.question.id}: {_said(pair.first)} -> {_said(pair.second)}; "
            f"right: {pair.first.question.gold}"
        )
    if flags.html:
        page = render(
            "evaluation/compare.html",
            first=str(flags.first),
            second=str(flags.second),
            head=_HEAD,
            rows=list(map(_row, comparisons)),
            pairs=different[:_ON_PAGE],
            hidden=max(0, len(different) - _ON_PAGE),
        )
        print(write_text(flags.html, page))


_HEAD = ["task", "questions", "first", "second", "difference [95 %]", "gained", "lost", "p (McNemar)"]


def _row(each: Comparison) -> list[str]:
    difference = f"{each.difference:+.1f} [{each.low:+.1f}, {each.high:+.1f}]"
    counts = [str(each.gained), str(each.lost)]
    return [
        each.task,
        str(each.questions),
        f"{each.first:.1f}",
        f"{each.second:.1f}",
        difference,
        *counts,
        f"{each.p_value:.2g}",
    ]


def _said(answered: Answered) -> str:
    return repr(answered.answer)[:60]
