"""Exact match: the model answers freely which digit is in the image that the question names.

Question q for N images is drawn from the generator keyed by (seed, task, N, q): a target in a random colour, N-1 distractors
and the target's place. Both ways of naming the target are asked about the same pictures. An answer counts when all of its
text is right (`red 7`, or `7` by index), so chance is guessing one digit in ten.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.evaluation.curves import ChanceLine, Curve, draw_curves
from owl3_jax.evaluation.report import format_table, percent, rounded, with_interval
from owl3_jax.evaluation.scores import is_exact_match, wilson_interval
from owl3_jax.evaluation.task import Scored, Summary
from owl3_jax.evaluation.tasks import digits_prompts as digits
from owl3_jax.evaluation.tasks.digits_prompts import DigitPrompt, DigitQuestion, Naming, QuestionSet

CHANCE = 0.1
_TASK = 0  # keeps random draws apart from those of other tasks


@dataclasses.dataclass(frozen=True)
class Point:
    """Score of one number of images."""

    naming: Naming
    images: int
    questions: int
    right: int
    accuracy: float
    interval_95: tuple[float, float]  # Wilson's


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """A `Task`. Raises ConfigError when a question needs more pictures than are held out."""

    config: EvalConfig
    name: ClassVar[str] = "exact_match"

    def __post_init__(self) -> None:
        digits.check_counts("exact_match_images", self.config.exact_match_images)

    @functools.cached_property
    def sets(self) -> list[QuestionSet]:
        """All questions: by colour, then by index; each by increasing number of images."""
        return digits.make_sets(self.config.exact_match_images, functools.partial(make_questions, self.config))

    def prompts(self) -> Iterator[DigitPrompt]:
        """Set by set."""
        return itertools.chain.from_iterable(questions.prompts for questions in self.sets)

    def score(self, question: DigitQuestion, answer: str) -> bool:
        """Whether `answer` is the expected one."""
        return is_exact_match(answer, question.expected)

    def summarize(self, scored: Sequence[Scored[DigitQuestion, bool]]) -> Summary:
        """Accuracy by naming and number of images."""
        points = [make_point(naming, images, answers) for naming, images, answers in digits.by_set(scored)]
        block = {"chance": CHANCE, "points": [rounded(dataclasses.asdict(point)) for point in points]}
        return Summary(
            report={"trained_images": list(digits.TRAINED_IMAGES), self.name: block},
            table=_table(points),
            figures={"exact_match.png": _figure(points)},
        )

    def showcase(self) -> list[list[DigitPrompt]]:
        """The sets."""
        return [questions.first_samples for questions in self.sets]

    def card(self, prompt: DigitPrompt, answer: str) -> Card:
        """The question and both answers."""
        return digits.make_card(prompt.question, answer, is_right=self.score(prompt.question, answer))


def make_questions(config: EvalConfig, naming: Naming, images: int) -> QuestionSet:
    """The questions about `images` images, `config.questions` of them."""
    prompts = []
    for number in range(config.questions):
        rng = np.random.default_rng([config.seed, _TASK, images, number])
        prompts.append(digits.make_prompt(digits.draw_scene(rng, digits.draw_target(rng), images), naming, name=str(number)))
    return QuestionSet(naming, images, prompts)


def make_point(naming: Naming, images: int, answers: Sequence[Scored[DigitQuestion, bool]]) -> Point:
    """The share of right answers."""
    right, total = sum(each.score for each in answers), len(answers)
    return Point(naming, images, total, right, right / total, wilson_interval(right, total))


def _table(points: Sequence[Point]) -> str:
    head = f"Exact match on held-out images: {points[0].questions} questions a number, chance {percent(CHANCE)}"
    columns = [digits.by_naming(points, naming) for naming in digits.NAMINGS]
    rows = [["images", *(f"by {naming} [95 %]" for naming in digits.NAMINGS)]]
    for same_images in zip(*columns, strict=True):
        rows.append([str(same_images[0].images), *(with_interval(point.accuracy, point.interval_95) for point in same_images)])
    return "\n".join([head, *format_table(rows)])


def _figure(points: Sequence[Point]) -> Figure:
    """Accuracy against the number of images, one line for each naming of the target."""
    curves = [_curve(digits.by_naming(points, naming), naming) for naming in digits.NAMINGS]
    chance = ChanceLine(f"chance\n{percent(CHANCE)}", curves[0].images, [CHANCE] * len(curves[0].images))
    note = f"{points[0].questions} questions a point; bands: 95 % intervals"
    return draw_curves("Exact match on held-out handwritten digits", note, curves, [chance], digits.TRAINED_IMAGES)


def _curve(points: Sequence[Point], naming: Naming) -> Curve:
    return Curve(
        label=f"asked by {naming}",
        color=digits.CURVE_COLOURS[naming],
        images=[point.images for point in points],
        accuracy=[point.accuracy for point in points],
        interval=[point.interval_95 for point in points],
    )
