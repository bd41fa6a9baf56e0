"""What an evaluation writes and prints: report.json, the figures and the contact sheet; and how numbers are shown in them."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from owl3_jax.config import EvalConfig, JsonTree
from owl3_jax.evaluation.contact_sheet import draw_contact_sheet
from owl3_jax.evaluation.curves import save_figure
from owl3_jax.evaluation.samples import Sample, to_record
from owl3_jax.evaluation.task import Summary
from owl3_jax.host.files import write_text

SHEET_NOTE = "One question from each of several sets, chosen without looking at the answers; the image asked about is framed"


def make_report(summaries: Iterable[Summary], samples: Iterable[Sample], config: EvalConfig) -> JsonTree:
    """Everything that the model and the settings determine: equal ones give an equal report."""
    settings = dataclasses.asdict(config)
    del settings["tasks"]  # each has a block of its own
    report: JsonTree = {"settings": settings}
    for summary in summaries:
        report |= summary.report
    return report | {"samples": [to_record(sample) for sample in samples]}


def write_results(
    directory: Path, summaries: Sequence[Summary], samples: Sequence[Sample], config: EvalConfig, run: JsonTree
) -> list[Path]:
    """Writes report.json, the figures of all tasks and (if there are any samples) samples.png; returns their paths.

    `run` (device, versions, time) is what differs between equal evaluations: the report's last block.
    """
    report = make_report(summaries, samples, config) | {"run": run}
    figures = {name: figure for summary in summaries for name, figure in summary.figures.items()}
    if samples:
        figures["samples.png"] = draw_contact_sheet([sample.card for sample in samples], SHEET_NOTE)
    return [
        write_text(directory / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n"),
        *(save_figure(figure, directory / name) for name, figure in figures.items()),
    ]


def rounded(fields: JsonTree) -> JsonTree:
    """The same fields, with floats rounded to six places: enough for every share of a count here."""
    return {name: _round(value) for name, value in fields.items()}


def _round(value: object) -> object:
    if isinstance(value, tuple):
        return [_round(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def percent(share: float) -> str:
    """`share` as a percentage, with more digits where it would otherwise be zero."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.1g} %"


def with_interval(share: float, interval: tuple[float, float]) -> str:
    """`share` and its confidence interval as percentages."""
    return f"{percent(share)} [{100 * interval[0]:4.1f}, {100 * interval[1]:5.1f}]"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, aligned on the right and separated by two spaces."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
