"""Curves of training runs on one HTML page, which needs no other file. It has the numbers; its script draws them."""

import colorsys
import json
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from owl3_jax.config import JsonTree
from owl3_jax.data.cards import render
from owl3_jax.training.runs import Curve, Life, Run
from owl3_jax.training.runs_summary import (
    KINDS,
    format_duration,
    last_step,
    local_time,
    seconds_by_kind,
    shares_by_kind,
    state_of,
    table_of,
)

# The first four are those of the figures of evaluations.
_COLOURS = ("#1f6fb4", "#d1651b", "#2a8f4d", "#8a4fa8", "#c2334d", "#14879a", "#8c6239", "#d15fa0", "#6f7d1c", "#56616f")
_KIND_COLOURS = {
    "step": "#3f9e5f",
    "compile": "#8a4fa8",
    "data": "#d0901f",
    "save": "#1f6fb4",
    "evaluation": "#4aa5b8",
    "start": "#555a63",
    "lost": "#cc2b2b",
    "down": "#a3a6ac",
    "other": "#d9dbdf",
}
_MOST_POINTS, _FEWEST_POINTS = 2000, 20  # of a curve
_PAGE_POINTS = 90_000  # of all of them: about 1.3 MB
_SMOOTHED, _FEWEST_SMOOTHED = 100, 20  # a bold line is a mean of means, over this part of a run's reports on both sides
_LOG_RANGE = 100.0
_MOST_BREAKS = 20  # places that are marked where a curve becomes NaN

_Way = Literal["thin", "line", "dots", "breaks"]


class _Plan(NamedTuple):
    """What a panel shows, where runs have it."""

    title: str
    name: str  # in metrics.jsonl
    held_out: str = ""  # the same on held-out data
    smooth: bool = True
    from_zero: bool = False
    log: bool = False  # where the range is wide
    dots: bool = False


class _Group(NamedTuple):
    title: str
    note: str
    columns: int  # of panels; 0: as their number suggests
    plans: Sequence[_Plan]


def render_page(runs: Sequence[Run], now: float) -> str:
    """The page's HTML, as of a time in Unix seconds."""
    groups = [_with_numbers(group, runs) for group in _groups(runs)]
    groups = [group for group in groups if group.plans]
    points = _points(groups, runs)
    table, colours = table_of(runs, now), colours_for(len(runs))
    page = {
        "runs": [
            {"name": run.name, "colour": colour, "resumed": [life.first_step for life in run.lives[1:]]}
            for run, colour in zip(runs, colours, strict=True)
        ],
        "groups": [
            {
                "title": group.title,
                "note": group.note,
                "columns": group.columns,
                "panels": [
                    _panel(plan, runs, max(_FEWEST_POINTS, min(_MOST_POINTS, points // group.columns))) for plan in group.plans
                ],
            }
            for group in groups
        ],
    }
    return render(
        "training/runs.html",
        written=local_time(now),
        head=table.head,
        rows=[
            {
                "cells": cells,
                "colour": colour,
                "state": state_of(run, now),
                "workdir": str(run.workdir),
                "done": min(1.0, last_step(run) / max(1, run.steps)),
            }
            for run, cells, colour in zip(runs, table.rows, colours, strict=True)
        ],
        times=[_time(run, colour) for run, colour in zip(runs, colours, strict=True) if shares_by_kind(run.lives)],
        kinds=[(KINDS[kind], _KIND_COLOURS[kind]) for kind in KINDS if any(kind in shares_by_kind(run.lives) for run in runs)],
        # Within a script element, only its end has a meaning.
        page=json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def thin(curve: Curve, most: int) -> Curve:
    """A curve of at most `most` points, at least 4: of equally many reports the smallest and the largest, and both ends."""
    reports = len(curve.steps)
    if reports <= most:
        return curve
    width = -(-reports // ((most - 2) // 2))
    padding = np.full(-reports % width, np.nan)
    bins = np.concatenate([curve.values, padding]).reshape(-1, width)
    starts = np.arange(len(bins)) * width
    finite = np.isfinite(bins)
    low, high = (np.argmin(np.where(finite, sign * bins, np.inf), axis=1) for sign in (1, -1))
    chosen = np.unique(np.concatenate([starts + low, starts + high, [0, reports - 1]]))
    return Curve(curve.steps[chosen], curve.values[chosen])


def smooth(curve: Curve) -> Curve | None:
    """Means over the reports around each, those near it with larger weights; None where there are too few reports.

    NaN and infinite values are left out of them, and where they are there is no mean.
    """
    if len(curve.steps) < _FEWEST_SMOOTHED:
        return None
    half = max(1, len(curve.steps) // _SMOOTHED)
    finite = np.isfinite(curve.values)
    sums, counts = np.where(finite, curve.values, 0.0), finite.astype(np.float64)
    for _ in range(2):  # a mean of means: a spike becomes a hill, no plateau
        sums, counts = _window_sums(sums, half), _window_sums(counts, half)
    return Curve(curve.steps, np.where(finite, sums / np.maximum(counts, 1.0), np.nan))


def colours_for(count: int) -> list[str]:
    """A colour for each of several runs."""
    return [*_COLOURS[:count], *(_colour(number) for number in range(count - len(_COLOURS)))]


def _groups(runs: Sequence[Run]) -> list[_Group]:
    """Everything that a page can have, by what the runs report."""
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    parts = {prefix: [name for name in names if name.startswith(prefix)] for prefix in _PREFIXES}
    sources = dict.fromkeys(name.split("loss/", 1)[1] for prefix in ("loss/", "heldout/loss/") for name in parts[prefix])
    return [
        _Group("Loss", _LOSS_NOTE, 1, [_Plan("loss", "loss", "heldout/loss")]),
        _Group(
            "Scores",
            "",
            0,
            [
                _Plan("accuracy of the next token", "accuracy", "heldout/accuracy"),
                *(_Plan(name.removeprefix("eval/"), name, smooth=False, dots=True) for name in parts["eval/"]),
            ],
        ),
        _Group(
            "Optimizer",
            "",
            2,
            [
                _Plan("learning rate", "learning_rate", smooth=False, from_zero=True),
                _Plan("gradient norm", "grad_norm", log=True),
            ],
        ),
        _Group(
            "Speed",
            "",
            2,
            [
                _Plan("tokens a second", "tokens_per_second", from_zero=True),
                _Plan("images a second", "images_per_second", from_zero=True),
                _Plan("model FLOPs utilization", "mfu", from_zero=True),
                _Plan("memory of a device, GB", "memory_gb", smooth=False, from_zero=True),
            ],
        ),
        _Group("Loss by source", "", 0, [_Plan(source, f"loss/{source}", f"heldout/loss/{source}") for source in sources]),
        _Group("Gradient norm by part", "", 0, _by_part(parts["grad_norm/"], log=True)),
        _Group("Norm of the update by part", "", 0, _by_part(parts["update_norm/"], log=True)),
        _Group("Learning rate by part", "", 0, _by_part(parts["learning_rate/"], log=False)),
        _Group(
            "Data",
            "",
            0,
            [
                *(_Plan(f"epochs of {_end(name)}", name, smooth=False, from_zero=True) for name in parts["epochs/"]),
                *(_Plan(f"samples of {_end(name)}", name, smooth=False, from_zero=True) for name in parts["samples/"]),
                _Plan("skipped samples", "skipped_samples", smooth=False, from_zero=True),
                *(_Plan(f"rows filled with {_end(name)}", name, from_zero=True) for name in parts["fill/"]),
            ],
        ),
    ]


_PREFIXES = ("loss/", "heldout/loss/", "eval/", "grad_norm/", "update_norm/", "learning_rate/", "epochs/", "samples/", "fill/")
_LOSS_NOTE = (
    "Over answer tokens. Thin: each report; bold: their moving mean; dots: held-out data. A cross is where a curve becomes NaN "
    "or infinite, a tick on the axis where another process resumed the run. First steps and spikes may leave the frame."
)


def _columns(panels: int) -> int:
    """How many panels are in a row."""
    return {1: 2, 2: 2, 4: 4}.get(panels, 3)


def _by_part(names: Sequence[str], log: bool) -> list[_Plan]:
    return [_Plan(_end(name), name, smooth=log, log=log, from_zero=not log) for name in names]


def _end(name: str) -> str:
    return name.split("/", 1)[1]


def _with_numbers(group: _Group, runs: Sequence[Run]) -> _Group:
    """A group without the panels for which no run has a value."""
    plans = [plan for plan in group.plans if any(_numbers(plan, run) for run in runs)]
    return group._replace(plans=plans, columns=group.columns or _columns(len(plans)))


def _points(groups: Sequence[_Group], runs: Sequence[Run]) -> int:
    """How many points a curve has that is as wide as the page; others have fewer, as they are narrower."""
    curves = [len(_numbers(plan, run)) / group.columns for group in groups for plan in group.plans for run in runs]
    return int(_PAGE_POINTS / max(1.0, 2 * sum(curves)))  # a curve is drawn twice: as it is, and smoothed


def _numbers(plan: _Plan, run: Run) -> list[str]:
    """The names of a panel's curves of which a run has values to show."""
    return [name for name in (plan.name, plan.held_out) if name in run.curves and np.isfinite(run.curves[name].values).any()]


def _panel(plan: _Plan, runs: Sequence[Run], most: int) -> JsonTree:
    lines = [line for number, run in enumerate(runs) for line in _lines(plan, number, run, most)]
    values = [run.curves[name].values for run in runs for name in _numbers(plan, run)]
    log = plan.log and _is_wide(np.concatenate(values))
    return {"title": plan.title, "log": log, "zero": plan.from_zero and not log, "noisy": plan.smooth, "lines": lines}


def _lines(plan: _Plan, number: int, run: Run, most: int) -> Iterator[JsonTree]:
    names = _numbers(plan, run)
    if plan.name in names:
        curve = run.curves[plan.name]
        means = smooth(curve) if plan.smooth else None
        if means:
            yield _line(number, "thin", curve, most)
        yield _line(number, "dots" if plan.dots else "line", means or curve, most)
        breaks = _breaks(curve)
        if len(breaks.steps):
            yield _line(number, "breaks", breaks, most)
    if plan.held_out in names:
        yield _line(number, "dots", run.curves[plan.held_out], most)


def _line(number: int, way: _Way, curve: Curve, most: int) -> JsonTree:
    steps, values = thin(curve, most)
    rounded = [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
    return {"run": number, "way": way, "steps": steps.tolist(), "values": rounded}


def _breaks(curve: Curve) -> Curve:
    """The last finite values before others."""
    finite = np.isfinite(curve.values)
    places = np.flatnonzero(finite[:-1] & ~finite[1:])[:_MOST_BREAKS]
    return Curve(curve.steps[places], curve.values[places])


def _is_wide(values: Float64[np.ndarray, " reports"]) -> bool:
    positive = values[np.isfinite(values) & (values > 0)]
    return len(positive) > 0 and bool(positive.max() > _LOG_RANGE * positive.min())


def _window_sums(values: Float64[np.ndarray, " reports"], half: int) -> Float64[np.ndarray, " reports"]:
    """Of each place the sum over it and `half` places on both sides, fewer of them at the ends."""
    before = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    return before[np.minimum(places + half + 1, len(values))] - before[np.maximum(places - half, 0)]


def _time(run: Run, colour: str) -> JsonTree:
    shares, seconds = shares_by_kind(run.lives), seconds_by_kind(run.lives)
    return {
        "name": run.name,
        "colour": colour,
        "total": format_duration(sum(seconds.values())),
        "lives": _said_lives(run.lives),
        "parts": [
            {
                "percent": 100 * share,
                "colour": _KIND_COLOURS[kind],
                "label": f"{100 * share:.0f} %" if share >= 0.06 else "",
                "title": f"{KINDS[kind]}: {100 * share:.1f} %, {format_duration(seconds[kind])}",
            }
            for kind, share in shares.items()
        ],
    }


def _said_lives(lives: Sequence[Life]) -> str:
    return "1 process" if len(lives) == 1 else f"{len(lives)} processes, one after the other"


def _colour(number: int) -> str:
    """One of any number of colours: each hue is far from those before it."""
    red, green, blue = colorsys.hls_to_rgb((0.07 + 0.618034 * number) % 1, 0.42, 0.6)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
