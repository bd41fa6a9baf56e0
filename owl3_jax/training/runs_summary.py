"""Where training runs stand: their states, their last numbers, the time that is left, and what the time went into."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from owl3_jax.training.runs import Curve, Life, Run

# Kinds of time in the order in which they are shown, with what they are called.
KINDS = {
    "step": "goodput",
    "compile": "compiling",
    "data": "waiting for data",
    "save": "saving",
    "evaluation": "evaluating",
    "start": "starting",
    "lost": "lost steps",
    "down": "down",
    "other": "other",
}

_LONG = {"compile": "compiling", "evaluation": "evaluating"}  # what goes on silently
_LONG_WORK = 3600.0  # seconds, for how long
_SHORTEST_SILENCE, _SILENT_REPORTS = 120.0, 5  # seconds; times between two reports
_REPORTS_FOR_RATE = 100
_MOST_SCORES = 2  # columns of the table
_LONGEST_STATE = 36  # characters in the table


class State(NamedTuple):
    """What a run does."""

    kind: Literal["finished", "running", "stopped", "failed", "silent"]
    text: str


class Table(NamedTuple):
    """Runs as rows of text."""

    head: list[str]
    rows: list[list[str]]


def state_of(run: Run, now: float) -> State:
    """What a run does at a time, in Unix seconds. One that was killed, or hangs, is silent."""
    ended = run.lives[-1].ended if run.lives else None
    if last_step(run) >= run.steps:
        return State("finished", "finished")
    if ended is not None:
        return State("failed" if ended.startswith("error") else "stopped", ended)
    updated = run.lives[-1].updated if run.lives else run.changed
    doing = run.lives[-1].doing if run.lives else "step"
    usual = max(_SHORTEST_SILENCE, _SILENT_REPORTS * _report_seconds(run))
    if now - updated < (_LONG_WORK if doing in _LONG else usual):
        return State("running", _LONG.get(doing, "running"))
    return State("silent", f"silent since {local_time(updated)}")


def last_step(run: Run) -> int:
    """The last step that a run has taken and told of."""
    reported = [int(curve.steps[-1]) for curve in run.curves.values()]
    return max([0, *reported, *(life.last_step for life in run.lives[-1:])])


def lost_steps(lives: Sequence[Life]) -> list[int]:
    """Of each life, the steps that a later one did again."""
    lost = []
    for place, life in enumerate(lives):
        kept = min([later.first_step for later in lives[place + 1 :]], default=life.last_step)
        lost.append(max(0, life.last_step - max(kept, life.first_step)))
    return lost


def seconds_by_kind(lives: Sequence[Life]) -> dict[str, float]:
    """The time from the beginning of the first life to the last news of the last one, by `KINDS`, in seconds.

    `step` is goodput: steps that no later life did again. What a life does not account for is `other`.
    """
    seconds = {kind: math.fsum(life.seconds.get(kind, 0.0) for life in lives) for kind in KINDS}
    for life, lost in zip(lives, lost_steps(lives), strict=True):
        share = lost / max(1, life.last_step - life.first_step)
        seconds["lost"] += share * life.seconds.get("step", 0.0)
        seconds["other"] += max(0.0, life.updated - life.began - sum(life.seconds.values()))
    seconds["step"] -= seconds["lost"]
    for life, following in itertools.pairwise(lives):
        seconds["down"] += max(0.0, following.began - life.updated)
    return seconds


def shares_by_kind(lives: Sequence[Life]) -> dict[str, float]:
    """The same as fractions, whose sum is 1; nothing for a run without accounts."""
    seconds = seconds_by_kind(lives)
    total = sum(seconds.values())
    return {kind: each / total for kind, each in seconds.items() if each} if total else {}


def seconds_left(run: Run) -> float | None:
    """How long the remaining steps will take, from what the last reports say about their time; None where they do not."""
    seconds = _seconds(run)
    steps = np.unique(seconds.steps)[-_REPORTS_FOR_RATE:]
    if len(steps) < 2:
        return None
    spent = float(seconds.values[seconds.steps > steps[0]].sum())
    return (run.steps - last_step(run)) * spent / float(steps[-1] - steps[0])


def table_of(runs: Sequence[Run], now: float) -> Table:
    """Where the runs stand at a time, in Unix seconds, without the columns that no run fills."""
    scores = list(dict.fromkeys(name for run in runs for name in run.curves if name.startswith("eval/")))
    columns: dict[str, Callable[[Run], str]] = {
        "run": lambda run: run.name,
        "state": lambda run: _cut(state_of(run, now).text),
        "step": lambda run: f"{last_step(run):,}/{run.steps:,}",
        "time left": lambda run: _left(run, now),
        "loss": lambda run: _last(run, "loss", ".4f"),
        "held-out loss": lambda run: _last(run, "heldout/loss", ".4f"),
        "best (step)": lambda run: _best(run.curves.get("heldout/loss")),
        **{name.removeprefix("eval/"): _score_column(name) for name in scores[:_MOST_SCORES]},
        "tokens/s": lambda run: _last(run, "tokens_per_second", ",.0f"),
        "goodput": _goodput,
        "checkpoint": lambda run: "" if run.checkpoint is None else f"{run.checkpoint:,}",
    }
    filled = {head: [cell(run) for run in runs] for head, cell in columns.items()}
    filled = {head: cells for head, cells in filled.items() if any(cells)}
    return Table(list(filled), [list(row) for row in zip(*filled.values(), strict=True)])


def local_time(seconds: float) -> str:
    """Unix seconds as a date and a time of day, in the time zone of this machine."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def format_duration(seconds: float) -> str:
    """A time in its two largest units."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _seconds(run: Run) -> Curve:
    """All times that reports tell of, in seconds since the report before; several ones of a step are of different kinds."""
    curves = [curve for name, curve in run.curves.items() if name.startswith("seconds/")]
    empty = Curve(np.zeros(0, np.int64), np.zeros(0))
    return Curve(*(np.concatenate(column) for column in zip(empty, *curves, strict=True)))


def _report_seconds(run: Run) -> float:
    """What the last report says about the time since the one before it; 0 where it says nothing."""
    steps, values = _seconds(run)
    return float(values[steps == steps.max(initial=0)].sum())


def _left(run: Run, now: float) -> str:
    seconds = seconds_left(run) if state_of(run, now).kind == "running" else None
    return "" if seconds is None else format_duration(seconds)


def _last(run: Run, name: str, form: str) -> str:
    return format(float(run.curves[name].values[-1]), form) if name in run.curves else ""


def _best(curve: Curve | None) -> str:
    if curve is None or not np.isfinite(curve.values).any():
        return ""
    place = int(np.nanargmin(curve.values))
    return f"{curve.values[place]:.4f} ({curve.steps[place]:,})"


def _score_column(name: str) -> Callable[[Run], str]:
    return lambda run: _last(run, name, ".4g")


def _goodput(run: Run) -> str:
    shares = shares_by_kind(run.lives)
    return f"{100 * shares.get('step', 0.0):.1f} %" if shares else ""


def _cut(text: str) -> str:
    """A text for a cell: one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_STATE else f"{line[: _LONGEST_STATE - 3]}..."
