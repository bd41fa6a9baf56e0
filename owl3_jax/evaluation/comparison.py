"""Two runs on the same questions: paired bootstrap, McNemar's test, and the samples whose answers changed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import binomtest

from owl3_jax.evaluation.question import Answered
from owl3_jax.evaluation.samples import Sample, SamplesError, by_task

_RESAMPLES = 10_000


class Pair(NamedTuple):
    """A question with the answers of both runs."""

    task: str
    first: Answered
    second: Answered


class Comparison(NamedTuple):
    """How two runs differ on a task, by official scores. Questions that count only together are one."""

    task: str
    questions: int
    first: float  # score, 0 to 100
    second: float
    difference: float  # second - first
    low: float  # 95 % interval of the difference, by a paired bootstrap over questions
    high: float
    gained: int  # questions that only the second run has right, all of it
    lost: int
    p_value: float  # McNemar's exact test: how likely so uneven a split is if both are equally good


def pair_up(first: Sequence[Sample], second: Sequence[Sample]) -> list[Pair]:
    """The questions that both runs were asked. Raises SamplesError when there is none, or one differs between them."""
    others = {(each.task, each.answered.question.id): each.answered for each in second}
    pairs = [
        Pair(each.task, each.answered, others[each.task, each.answered.question.id])
        for each in first
        if (each.task, each.answered.question.id) in others
    ]
    if not pairs:
        raise SamplesError(
            f"the runs have no question in common: one has {', '.join(by_task(first))}, the other {', '.join(by_task(second))}"
        )
    for task, one, other in pairs:
        if (one.question.text, one.question.gold) != (other.question.text, other.question.gold):
            raise SamplesError(
                f"question {one.question.id} of {task} is not the same in both runs: their data or settings differ"
            )
    return pairs


def compare(pairs: Sequence[Pair]) -> list[Comparison]:
    """Each task's comparison."""
    tasks = dict.fromkeys(pair.task for pair in pairs)
    return [_compare(task, [pair for pair in pairs if pair.task == task]) for task in tasks]


def changed(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose scores differ: first those that were right, then the others."""
    found = [pair for pair in pairs if pair.first.judged.official != pair.second.judged.official]
    return sorted(found, key=lambda pair: pair.second.judged.official - pair.first.judged.official)


def _compare(task: str, pairs: Sequence[Pair]) -> Comparison:
    first, second = _shares(pairs)
    differences = second - first
    low, high = _bootstrap(differences)
    gained = int(np.sum((second == 1) & (first < 1)))
    lost = int(np.sum((first == 1) & (second < 1)))
    p_value = float(binomtest(min(gained, lost), gained + lost).pvalue) if gained + lost else 1.0
    before, after = (100 * math.fsum(shares.tolist()) / len(shares) for shares in (first, second))
    return Comparison(task, len(differences), before, after, after - before, low, high, gained, lost, p_value)


def _shares(pairs: Sequence[Pair]) -> tuple[Float64[np.ndarray, " questions"], Float64[np.ndarray, " questions"]]:
    """Of each question or group, how right both runs are: of a group 1 or 0."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for number, pair in enumerate(pairs):
        key = pair.first.question.group or f"\0{number}"
        groups.setdefault(key, []).append((pair.first.judged.official, pair.second.judged.official))
    rows = []
    for key, shares in groups.items():
        columns = list(zip(*shares, strict=True))
        rows.append(shares[0] if key.startswith("\0") else tuple(float(min(column) == 1) for column in columns))
    first, second = np.array(rows, np.float64).T
    return first, second


def _bootstrap(differences: Float64[np.ndarray, " questions"]) -> tuple[float, float]:
    """Percentiles of the mean difference over samples of as many questions; few values, so counts of them are drawn."""
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), counts / len(differences), _RESAMPLES)
    low, high = np.percentile(100 * drawn @ values / len(differences), (2.5, 97.5)).tolist()
    return low, high
