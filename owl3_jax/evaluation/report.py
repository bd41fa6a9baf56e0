"""The scores of one evaluation, as a dict for report.json and as a table to read."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from owl3_jax.config import EvalConfig
from owl3_jax.data.digits.samples import IMAGE_COUNTS
from owl3_jax.evaluation import distractor_resistance, exact_match
from owl3_jax.evaluation.distractor_resistance import DistractorResistance
from owl3_jax.evaluation.exact_match import ExactMatch
from owl3_jax.evaluation.prompts import NAMINGS, Naming
from owl3_jax.host.files import write_atomically

TRAINED_IMAGES = (min(IMAGE_COUNTS), max(IMAGE_COUNTS))  # images of a training sample, fewest and most

Point = ExactMatch | DistractorResistance


class Scores(NamedTuple):
    """All points of an evaluation: for each naming, by the number of images."""

    exact_match: list[ExactMatch]
    distractor_resistance: list[DistractorResistance]


def make_report(scores: Scores, samples: Sequence[dict[str, Any]], config: EvalConfig) -> dict[str, Any]:
    """Everything that the model and the settings determine: equal ones give an equal report."""
    return {
        "settings": dataclasses.asdict(config),
        "trained_images": list(TRAINED_IMAGES),
        "exact_match": {
            "chance": exact_match.CHANCE,
            "points": [_rounded(point) for point in scores.exact_match],
        },
        "distractor_resistance": {
            "protocol": list(distractor_resistance.PROTOCOL),
            "plain_chance": distractor_resistance.CHANCE,
            "points": [_rounded(point) for point in scores.distractor_resistance],
        },
        "samples": list(samples),
    }


def write_report(report: dict[str, Any], run: dict[str, Any], path: Path) -> Path:
    """Writes `report` as JSON, and `run` (device, versions, time: what differs between equal runs) as its last block."""
    text = json.dumps(report | {"run": run}, indent=2, ensure_ascii=False) + "\n"
    return write_atomically(path, lambda file: file.write(text.encode()))


def describe(scores: Scores) -> str:
    """The scores as two aligned tables, percentages with their 95 % intervals."""
    return "\n".join([*_exact_match_lines(scores.exact_match), "", *_distractor_lines(scores.distractor_resistance)])


def by_naming(points: Sequence[Point], naming: Naming) -> list[Any]:
    """Those of `points` that name the target by `naming`, with the number of images rising."""
    return sorted((point for point in points if point.naming == naming), key=lambda point: point.images)


def percent(share: float) -> str:
    """`share` as a percentage, with a digit more where it would else be zero."""
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.1g} %"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, aligned on the right, two blanks between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _exact_match_lines(points: Sequence[ExactMatch]) -> list[str]:
    head = f"Exact match on held-out images: {points[0].questions} questions a number, chance {percent(exact_match.CHANCE)}"
    columns = [by_naming(points, naming) for naming in NAMINGS]
    rows = [["images", *(f"by {naming} [95 %]" for naming in NAMINGS)]]
    for same_images in zip(*columns, strict=True):
        rows.append([str(same_images[0].images), *(_with_interval(point.accuracy, point.interval_95) for point in same_images)])
    return [head, *format_table(rows)]


def _distractor_lines(points: Sequence[DistractorResistance]) -> list[str]:
    most = max(points, key=lambda point: point.samples_per_question)
    head = (
        f"Distractor Resistance: {most.questions} questions a number, {most.samples_per_question} samples each "
        f"(chance: plain {percent(distractor_resistance.CHANCE)}, circular {percent(most.circular_chance)})"
    )
    columns = [by_naming(points, naming) for naming in NAMINGS]
    rows = [["images", *(title for naming in NAMINGS for title in (f"by {naming}: circular [95 %]", "plain"))]]
    for same_images in zip(*columns, strict=True):
        cells = [(_with_interval(p.circular_accuracy, p.circular_interval_95), percent(p.plain_accuracy)) for p in same_images]
        rows.append([str(same_images[0].images), *(cell for pair in cells for cell in pair)])
    return [head, *format_table(rows)]


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    return f"{percent(share)} [{100 * interval[0]:4.1f}, {100 * interval[1]:5.1f}]"


def _rounded(point: Point) -> dict[str, Any]:
    """The fields of `point`; shares to six places, enough for every count here, chances as they are."""
    return {name: _round(value) if name != "circular_chance" else value for name, value in dataclasses.asdict(point).items()}


def _round(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_round(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
