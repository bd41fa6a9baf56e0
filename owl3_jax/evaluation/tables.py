"""Scores as text: official and strict side by side, with their intervals and the paper's number."""

from collections.abc import Mapping

from owl3_jax.evaluation.by_images import pivot
from owl3_jax.evaluation.metrics import Metric, Scores
from owl3_jax.evaluation.paper import RESULTS
from owl3_jax.evaluation.task import Task
from owl3_jax.host.text_table import format_table


def with_interval(metric: Metric) -> str:
    """A score and its interval."""
    return f"{metric.value:.1f} [{metric.low:4.1f}, {metric.high:5.1f}]"


def task_table(task: Task, scores: Scores, questions: int, failed: int, *, size: str | None = None) -> str:
    """What is printed of a task."""
    head = f"{task.name}: {questions} questions" + (f", {failed} without an answer (counted as wrong)" if failed else "")
    official, strict = scores["official"], scores["strict"]
    if not official:
        return f"{head}; scored by a server or a judge"
    plain, series = pivot(official)
    rows = [["", "official [95 %]", "strict [95 %]"]]
    rows += [[name, with_interval(metric), with_interval(strict[name])] for name, metric in plain.items()]
    lines = [head, *format_table(rows)]
    if series:
        lines += ["", *format_table(_by_images(series))]
    if reported := paper_numbers(task.about.paper, size):
        lines.append(f"paper, {task.about.paper}: " + ", ".join(f"{name} {value:g}" for name, value in reported.items()))
    return "\n".join(lines)


def paper_numbers(column: str, size: str | None = None) -> Mapping[str, float]:
    """What the authors report, by size of the model; of one size if it is known."""
    reported = RESULTS.get(column, {})
    return {size: reported[size]} if size in reported else reported


def _by_images(series: Mapping[str, Mapping[int, Metric]]) -> list[list[str]]:
    counts = sorted({count for points in series.values() for count in points})
    rows = [["images", *series]]
    for count in counts:
        rows.append([str(count), *(with_interval(points[count]) if count in points else "" for points in series.values())])
    return rows
