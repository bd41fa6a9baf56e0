"""Accuracy against the number of images, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from owl3_jax.host.files import write_atomically

INK = "#333333"
TRAINED = "#eef3e6"


class Curve(NamedTuple):
    """One line of a figure. Accuracies are fractions, 0 to 1."""

    label: str
    color: str
    images: Sequence[int]  # the N of each point
    accuracy: Sequence[float]
    interval: Sequence[tuple[float, float]] | None = None  # 95 % interval of each point, drawn as a band
    dashed: bool = False


class ChanceLine(NamedTuple):
    """What guessing scores, over the same N."""

    label: str
    images: Sequence[int]
    accuracy: Sequence[float]


def draw_curves(
    title: str, note: str, curves: Sequence[Curve], chances: Sequence[ChanceLine], trained_images: tuple[int, int] | None
) -> Figure:
    """`curves` and `chances` over a log axis of N, a trained range of N shaded, `note` small below the title."""
    figure = Figure(figsize=(8.4, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _write_head(axes, title, note)
    _frame(axes, sorted({n for curve in curves for n in curve.images}))
    if trained_images:
        _shade_trained(axes, trained_images)
    for curve in curves:
        _draw_curve(axes, curve)
    for chance in chances:
        _draw_chance(axes, chance)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9, frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes `figure` as a PNG without a date or version, so that equal scores give equal bytes."""
    return write_atomically(
        path,
        lambda file: figure.savefig(file, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.15),
    )


def _write_head(axes: Axes, title: str, note: str) -> None:
    corner, units = (0, 1), ("axes fraction", "offset points")
    axes.annotate(note, corner, (0, 7), *units, va="bottom", fontsize=9, color="#666666", linespacing=1.3)
    above_note = 14 + 13 * (note.count("\n") + 1)  # points
    axes.annotate(title, corner, (0, above_note), *units, va="bottom", fontsize=13, fontweight="bold", color=INK)


def _frame(axes: Axes, images: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(images, [str(n) for n in images])
    axes.set_xticks([], minor=True)
    axes.set_xlim(images[0] / 1.25, images[-1] * 1.25)
    axes.set_xlabel("images in the question, N (log scale)", color=INK)
    axes.set_ylim(-0.025, 1.025)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"])
    axes.set_ylabel("right answers", color=INK)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _shade_trained(axes: Axes, trained_images: tuple[int, int]) -> None:
    first, last = trained_images
    left = axes.get_xlim()[0] if first == 1 else first
    axes.axvspan(left, last, color=TRAINED, linewidth=0, zorder=0, label=f"trained on N = {first} to {last}")


def _draw_curve(axes: Axes, curve: Curve) -> None:
    if curve.interval is not None:
        low, high = zip(*curve.interval, strict=True)
        axes.fill_between(curve.images, low, high, color=curve.color, alpha=0.15, linewidth=0)
    axes.plot(
        curve.images,
        curve.accuracy,
        color=curve.color,
        marker="o",
        markersize=5,
        label=curve.label,
        clip_on=False,
        linestyle=(0, (4, 2)) if curve.dashed else "-",
        markerfacecolor="white" if curve.dashed else curve.color,
    )


def _draw_chance(axes: Axes, chance: ChanceLine) -> None:
    axes.plot(chance.images, chance.accuracy, color="#777777", linewidth=1, linestyle=":")
    last = (axes.get_xlim()[1], chance.accuracy[-1])
    axes.annotate(
        chance.label, last, (4, 0), textcoords="offset points", annotation_clip=False, va="center", fontsize=8, color="#555555"
    )
