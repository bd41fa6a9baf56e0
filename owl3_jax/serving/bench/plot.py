"""The picture of a measurement: first tokens against images, how latencies are distributed, and requests over time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from owl3_jax.host.files import write_atomically
from owl3_jax.serving.bench.record import Record, Run
from owl3_jax.serving.bench.runs import Measured
from owl3_jax.serving.bench.statistics import in_flight

_COLOURS = ("#2b6a99", "#d1702f")
_SHORTEST = 1e-4  # seconds that a log axis begins with
_LEFT_OUT = 2  # percent of the shortest times, which would stretch the axis over decades
_INK, _FAILED, _GRID = "#333333", "#b3261e", "#dddddd"


def save_plot(path: Path, measured: Measured, title: str) -> Path:
    """Writes the picture as a PNG, whole or not at all."""
    figure = draw(measured, title)
    return write_atomically(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))


def draw(measured: Measured, title: str) -> Figure:
    """Four axes, with a colour for each load."""
    figure = Figure(figsize=(11, 7.8), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.885, bottom=0.07, wspace=0.16, hspace=0.24)
    figure.text(0.065, 0.955, title, fontsize=12, fontweight="bold", color=_INK, parse_math=False)
    (images, first), (timeline, gaps) = figure.subplots(2, 2)
    loads = measured.by_name()
    answered = [[record for run in runs for record in run.records if not record.error] for runs in loads]
    _draw_images(images, answered)
    _draw_timeline(timeline, loads)
    firsts = [[time for record in records if (time := record.time_to_first) is not None] for records in answered]
    _draw_distributions(first, "time to first token", firsts)
    _draw_distributions(
        gaps, "time between pieces of text", [[gap for record in records for gap in record.gaps] for records in answered]
    )
    named = [Patch(color=colour, label=runs[0].name) for colour, runs in zip(_COLOURS, loads, strict=False)]
    figure.legend(handles=named, loc="lower left", bbox_to_anchor=(0.055, 0.905), ncols=len(named), frameon=False, fontsize=10)
    return figure


def _draw_images(axes: Axes, loads: Sequence[Sequence[Record]]) -> None:
    """A point for each answer; those of follow-up questions, whose images the server has seen, are hollow."""
    _frame(axes, "images in the prompt", "time to first token, s")
    for colour, records in zip(_COLOURS, loads, strict=False):
        for is_follow_up, face in ((False, colour), (True, "none")):
            points = [
                (record.images, time)
                for record in records
                if (record.turn > 0) == is_follow_up and (time := record.time_to_first) is not None
            ]
            if points:
                images, times = zip(*points, strict=True)
                axes.scatter(images, times, s=26, facecolors=face, edgecolors=colour, alpha=0.75)
    if any(record.turn for records in loads for record in records):
        for label, face in (("first question", _INK), ("follow-up question", "none")):
            axes.scatter([], [], s=26, facecolors=face, edgecolors=_INK, label=label)
        axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)


def _draw_distributions(axes: Axes, quantity: str, loads: Sequence[Sequence[float]]) -> None:
    """The share of values up to each, on a log axis: the tail is what users notice."""
    _frame(axes, f"{quantity}, s (log scale)", "share of all")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    for colour, values in zip(_COLOURS, loads, strict=False):
        shown = np.maximum(values, _SHORTEST)  # pieces that came together have no time between them
        if shown.size:
            label = "  ".join(f"p{percent} {np.percentile(values, percent):.3g} s" for percent in (50, 99))
            axes.ecdf(shown, color=colour, linewidth=1.8, label=label)
            axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    if begins := [np.percentile(values, _LEFT_OUT) for values in loads if len(values)]:
        axes.set_xlim(left=max(min(begins), _SHORTEST) / 1.5)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")


def _draw_timeline(axes: Axes, loads: Sequence[Sequence[Run]]) -> None:
    """Requests under way; those that failed are marked at their end."""
    _frame(axes, "seconds since the first run began", "requests in flight")
    zero = min((run.began for runs in loads for run in runs), default=0.0)
    for colour, runs in zip(_COLOURS, loads, strict=False):
        for run in runs:
            steps = in_flight(run.records)
            times, counts = [time - zero for time, _ in steps], [count for _, count in steps]
            axes.fill_between(times, counts, step="post", color=colour, alpha=0.25, linewidth=0)
            axes.step(times, counts, where="post", color=colour, linewidth=0.9)
    failed = [record.ended - zero for runs in loads for run in runs for record in run.failures]
    if failed:
        axes.plot(failed, [0] * len(failed), "x", color=_FAILED, markersize=7, label=f"failed: {len(failed)}", clip_on=False)
        axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
