"""Scores of many answers, with their intervals: accuracy, by split and by group."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from owl3_jax.evaluation.question import READINGS, Answered, Reading
from owl3_jax.evaluation.scores import Z_95, wilson_interval

_RESAMPLES = 1000  # of a bootstrap


class Metric(NamedTuple):
    """A score from 0 to 100 and its 95 % interval."""

    value: float
    low: float
    high: float
    units: int  # samples, or groups that count together


Scores = dict[Reading, dict[str, Metric]]  # by reading and name; `accuracy` is there in every task that has a gold answer


def mean_metric(shares: Sequence[float]) -> Metric:
    """The mean of shares from 0 to 1 as a score: Wilson's interval where all are 0 or 1, else the normal one of a mean.

    Raises ValueError without shares.
    """
    if not shares:
        raise ValueError("there is no answer to score")
    count, mean = len(shares), math.fsum(shares) / len(shares)
    if all(share in (0, 1) for share in shares):
        low, high = wilson_interval(round(math.fsum(shares)), count)
    else:
        margin = Z_95 * float(np.std(shares, ddof=1 if count > 1 else 0)) / math.sqrt(count)
        low, high = max(0.0, mean - margin), min(1.0, mean + margin)
    return Metric(100 * mean, 100 * low, 100 * high, count)


def resampled(counts: Sequence[int]) -> list[list[int]]:
    """Counts of kinds of answers as they would be in other samples of as many: draws of a bootstrap, with a fixed seed."""
    total = sum(counts)
    shares = [count / total for count in counts]
    drawn: list[list[int]] = np.random.default_rng(0).multinomial(total, shares, _RESAMPLES).tolist()
    return drawn


def bootstrap_metric(share: float, drawn: Sequence[float], units: int) -> Metric:
    """A score that is no mean, such as F1, with the percentiles of what it is in a bootstrap's draws."""
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    return Metric(100 * share, 100 * low, 100 * high, units)


def accuracy(answered: Sequence[Answered]) -> Scores:
    """`accuracy` over all answers, and `accuracy (SPLIT)` over those of each split."""
    return {reading: _with_splits(answered, reading) for reading in READINGS}


def circular(answered: Sequence[Answered], name: str = "circular_accuracy") -> Scores:
    """As `accuracy`, and NAME over groups, of which one counts when all of its answers are right."""
    scores = accuracy(answered)
    for reading in READINGS:
        scores[reading][name] = mean_metric(group_shares(answered, reading))
        for split, part in by_split(answered).items():
            scores[reading][f"{name} ({split})"] = mean_metric(group_shares(part, reading))
    return scores


def group_shares(answered: Iterable[Answered], reading: Reading) -> list[float]:
    """Of each group, in the order of their first answers, 1 when all are right and else 0."""
    groups: dict[str, float] = {}
    for each in answered:
        groups[each.question.group] = min(groups.get(each.question.group, 1.0), float(each.judged.of(reading) == 1))
    return list(groups.values())


def by_split(answered: Iterable[Answered]) -> dict[str, list[Answered]]:
    """The answers of each split, in the order of their first ones; none where there are no splits."""
    return grouped(answered, lambda each: each.question.split)


def grouped(answered: Iterable[Answered], key: Callable[[Answered], str]) -> dict[str, list[Answered]]:
    """The answers by a key; those with an empty one are left out."""
    parts: dict[str, list[Answered]] = {}
    for each in answered:
        if name := key(each):
            parts.setdefault(name, []).append(each)
    return parts


def add_means(scores: Mapping[str, Scores]) -> Scores:
    """Of several tasks that are one benchmark, the mean of each score that all of them have.

    Its interval is that of a mean of independent scores.
    """
    found: Scores = {reading: {} for reading in READINGS}
    for reading in READINGS:
        parts = [each[reading] for each in scores.values()]
        for name in parts[0]:
            if all(name in part for part in parts):
                found[reading][name] = _mean_of([part[name] for part in parts])
    return found


def _mean_of(metrics: Sequence[Metric]) -> Metric:
    value = math.fsum(metric.value for metric in metrics) / len(metrics)
    margin = math.sqrt(sum(((metric.high - metric.low) / 2) ** 2 for metric in metrics)) / len(metrics)
    return Metric(value, max(0.0, value - margin), min(100.0, value + margin), sum(metric.units for metric in metrics))


def _with_splits(answered: Sequence[Answered], reading: Reading) -> dict[str, Metric]:
    found = {"accuracy": mean_metric([each.judged.of(reading) for each in answered])}
    for split, part in by_split(answered).items():
        found[f"accuracy ({split})"] = mean_metric([each.judged.of(reading) for each in part])
    return found
