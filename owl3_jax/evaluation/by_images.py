"""Scores by the number of images N. A score of one N is named `NAME @N`: `accuracy @8`, `circular_accuracy (by index) @50`."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from owl3_jax.evaluation.curves import INK, Curve
from owl3_jax.evaluation.metrics import Metric, Scores, by_split, group_shares, mean_metric
from owl3_jax.evaluation.question import READINGS, Answered, Reading

_PARTS = 10  # of the places of a target
_COLOURS = ("#1f6fb4", "#d1651b", "#2a8f4d", "#8a4fa8")
_AT = re.compile(r"(.+) @(\d+)")


def accuracy_by_images(answered: Sequence[Answered]) -> Scores:
    """`accuracy`, and `accuracy @N` of each split."""
    return {reading: _plain(answered, reading) for reading in READINGS}


def circular_by_images(answered: Sequence[Answered]) -> Scores:
    """As `accuracy_by_images`, and `circular_accuracy` over groups, all of whose answers have to be right."""
    scores = accuracy_by_images(answered)
    for reading in READINGS:
        circular = {"circular_accuracy": mean_metric(group_shares(answered, reading))}
        for label, part in _parts(answered):
            for count, same in _by_count(part).items():
                circular[f"circular_accuracy{label} @{count}"] = mean_metric(group_shares(same, reading))
        scores[reading] = circular | scores[reading]
    return scores


def counts_of(answered: Sequence[Answered]) -> list[int]:
    """The numbers of images."""
    return list(_by_count(answered))


def pivot(scores: Mapping[str, Metric]) -> tuple[dict[str, Metric], dict[str, dict[int, Metric]]]:
    """The scores without an N, and those with one: by name, then by N."""
    plain: dict[str, Metric] = {}
    series: dict[str, dict[int, Metric]] = {}
    for name, metric in scores.items():
        if match := _AT.fullmatch(name):
            series.setdefault(match[1], {})[int(match[2])] = metric
        else:
            plain[name] = metric
    return plain, series


def curves_of(scores: Mapping[str, Metric]) -> list[Curve]:
    """The scores with an N as lines: circular ones with their intervals, plain ones beside them dashed."""
    _, series = pivot(scores)
    splits = list(dict.fromkeys(_split(name) for name in series))
    has_circular = any(name.startswith("circular") for name in series)
    return [
        Curve(
            name.replace("circular_accuracy", "circular").replace("accuracy", "plain" if has_circular else "accuracy"),
            _COLOURS[splits.index(_split(name)) % len(_COLOURS)],
            list(points),
            [metric.value / 100 for metric in points.values()],
            None if has_circular and name.startswith("accuracy") else [(m.low / 100, m.high / 100) for m in points.values()],
            dashed=has_circular and name.startswith("accuracy"),
        )
        for name, points in series.items()
    ]


def heat_map(answered: Sequence[Answered], title: str) -> Figure:
    """Plain accuracy by N and by the target's place among the images, in tenths."""
    counts = counts_of(answered)
    sums, totals = np.zeros((2, _PARTS, len(counts)))
    for each in answered:
        count = each.question.facts["images"]
        if each.question.target is None:
            continue
        first, last = (_PARTS * place // count for place in (each.question.target, each.question.target + 1))
        places = slice(first, max(first + 1, last)), counts.index(count)  # with few images one is several tenths
        sums[places] += each.judged.official
        totals[places] += 1
    figure = Figure(figsize=(8.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)
    drawn = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_title(f"{title}: right answers by the target's place", fontsize=12, fontweight="bold", color=INK, loc="left")
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("images in the question, N", color=INK)
    axes.set_yticks([0, _PARTS // 2, _PARTS - 1], ["first tenth", "middle", "last tenth"])
    axes.set_ylabel("place of the image that is asked about", color=INK)
    for row, column in np.ndindex(shares.shape):
        if not np.isnan(shares[row, column]):
            value = 100 * shares[row, column]
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 60 else INK)
    figure.colorbar(drawn, ax=axes, label="right answers, %")
    return figure


def _plain(answered: Sequence[Answered], reading: Reading) -> dict[str, Metric]:
    found = {"accuracy": mean_metric([each.judged.of(reading) for each in answered])}
    for label, part in _parts(answered):
        for count, same in _by_count(part).items():
            found[f"accuracy{label} @{count}"] = mean_metric([each.judged.of(reading) for each in same])
    return found


def _parts(answered: Sequence[Answered]) -> list[tuple[str, Sequence[Answered]]]:
    """The splits with what stands for them in a score's name; all answers where there are no splits."""
    return [(f" ({split})", part) for split, part in by_split(answered).items()] or [("", answered)]


def _by_count(answered: Sequence[Answered]) -> dict[int, list[Answered]]:
    parts: dict[int, list[Answered]] = {}
    for each in answered:
        parts.setdefault(int(each.question.facts["images"]), []).append(each)
    return dict(sorted(parts.items()))


def _split(name: str) -> str:
    return name.partition(" ")[2]
