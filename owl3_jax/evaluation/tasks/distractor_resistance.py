"""Distractor Resistance: multiple choice about one image among N-1 distractors, scored by CircularEval.

After the paper (arXiv 2408.04840): `Image 1: <|image|> ... Image N: <|image|>. In Image X, {question}`, and a question counts
only when all of its samples, over option orders and over distractors, are answered right. Its code was not published. What
the paper leaves open is decided here and written to the report (`PROTOCOL`). The target is also named by its colour, not only
by the paper's index.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from owl3_jax.config import EvalConfig, JsonTree
from owl3_jax.data.digits.questions import draw_options
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.evaluation.curves import ChanceLine, Curve, draw_curves
from owl3_jax.evaluation.report import format_table, percent, rounded, with_interval
from owl3_jax.evaluation.scores import circular_accuracy, circular_chance, parse_choice, wilson_interval
from owl3_jax.evaluation.task import Scored, Summary
from owl3_jax.evaluation.tasks import digits_prompts as digits
from owl3_jax.evaluation.tasks.digits_prompts import DigitPrompt, DigitQuestion, Naming, QuestionSet

NUM_OPTIONS = 4
CHANCE = 1 / NUM_OPTIONS  # of one sample
PROTOCOL = (
    "Question q has one target (picture and colour) and four options, the right digit and three wrong ones, drawn from the "
    "generator keyed by (seed, task, q): every N and both namings ask the same questions.",
    "Draw d of N takes N-1 other held-out pictures and the target's place X, uniform in 1..N, from the generator keyed by "
    "(seed, task, q, N, d). No distractor has the target's colour; it may show the target's digit.",
    "Samples of a question: its options in all four rotations, for each draw. N = 1 has no distractors: one draw.",
    "The options follow the question on lines of their own (`A. 3`); there is no hint and no instruction after them.",
    "The choice is the last option letter that stands alone in the answer; an answer without one is wrong.",
    "Decoding is greedy. The circular chance is that of independent uniform guesses.",
)
_TASK = 1  # keeps random draws apart from those of other tasks


class Choice(NamedTuple):
    """What an answer chooses."""

    option: int | None
    is_right: bool


@dataclasses.dataclass(frozen=True)
class Point:
    """Score of one number of images."""

    naming: Naming
    images: int
    questions: int
    samples_per_question: int
    circular_right: int
    circular_accuracy: float
    circular_interval_95: tuple[float, float]  # Wilson's, over questions
    circular_chance: float
    plain_accuracy: float  # over samples; those of one question are not independent, hence no interval
    answers_without_choice: int


@dataclasses.dataclass(frozen=True)
class DistractorResistance:
    """A `Task`. Raises ConfigError when a question needs more pictures than are held out."""

    config: EvalConfig
    name: ClassVar[str] = "distractor_resistance"

    def __post_init__(self) -> None:
        digits.check_counts("distractor_images", self.config.distractor_images)

    @functools.cached_property
    def sets(self) -> list[QuestionSet]:
        """All questions: by colour, then by index; each by increasing number of images."""
        return digits.make_sets(self.config.distractor_images, functools.partial(make_questions, self.config))

    def prompts(self) -> Iterator[DigitPrompt]:
        """Set by set, question by question, sample by sample."""
        return itertools.chain.from_iterable(questions.prompts for questions in self.sets)

    def score(self, question: DigitQuestion, answer: str) -> Choice:
        """Which option `answer` chooses."""
        option = parse_choice(answer, question.options)
        return Choice(option, option == question.right_option)

    def summarize(self, scored: Sequence[Scored[DigitQuestion, Choice]]) -> Summary:
        """Circular and plain accuracy by naming and number of images."""
        points = [make_point(naming, images, answers, self.config) for naming, images, answers in digits.by_set(scored)]
        block = {
            "protocol": list(PROTOCOL),
            "plain_chance": CHANCE,
            "points": [_record(point) for point in points],
        }
        return Summary(
            report={"trained_images": list(digits.TRAINED_IMAGES), self.name: block},
            table=_table(points),
            figures={"distractor_resistance.png": _figure(points)},
        )

    def showcase(self) -> list[list[DigitPrompt]]:
        """The sets, with the first sample of each question."""
        return [questions.first_samples for questions in self.sets]

    def card(self, prompt: DigitPrompt, answer: str) -> Card:
        """The question and both answers."""
        return digits.make_card(prompt.question, answer, is_right=self.score(prompt.question, answer).is_right)


def make_questions(config: EvalConfig, naming: Naming, images: int) -> QuestionSet:
    """The questions about `images` images; samples follow each other draw by draw, rotation by rotation."""
    prompts = []
    for question in range(config.distractor_questions):
        prompts += _question_samples(config.seed, naming, images, question, _draws(config, images))
    return QuestionSet(naming, images, prompts, _samples_per_question(config, images))


def make_point(naming: Naming, images: int, answers: Sequence[Scored[DigitQuestion, Choice]], config: EvalConfig) -> Point:
    """Circular and plain accuracy."""
    samples = _samples_per_question(config, images)
    right = np.array([each.score.is_right for each in answers]).reshape(-1, samples)
    circular_right = int(right.all(axis=1).sum())
    return Point(
        naming=naming,
        images=images,
        questions=len(right),
        samples_per_question=samples,
        circular_right=circular_right,
        circular_accuracy=circular_accuracy(right),
        circular_interval_95=wilson_interval(circular_right, len(right)),
        circular_chance=circular_chance(NUM_OPTIONS, samples),
        plain_accuracy=float(right.mean()),
        answers_without_choice=sum(each.score.option is None for each in answers),
    )


def rotations(options: Sequence[int]) -> list[tuple[int, ...]]:
    """The options in all orders that CircularEval asks: each is once at each letter."""
    return [(*options[start:], *options[:start]) for start in range(len(options))]


def _draws(config: EvalConfig, images: int) -> int:
    return config.distractor_draws if images > 1 else 1


def _samples_per_question(config: EvalConfig, images: int) -> int:
    return NUM_OPTIONS * _draws(config, images)


def _question_samples(seed: int, naming: Naming, images: int, question: int, draws: int) -> list[DigitPrompt]:
    rng = np.random.default_rng([seed, _TASK, question])
    target = digits.draw_target(rng)
    options = draw_options(rng, target.digit)
    scenes = [
        digits.draw_scene(np.random.default_rng([seed, _TASK, question, images, draw]), target, images) for draw in range(draws)
    ]
    samples = enumerate(itertools.product(scenes, rotations(options)))
    return [digits.make_prompt(scene, naming, order, name=f"{question}/{sample}") for sample, (scene, order) in samples]


def _record(point: Point) -> JsonTree:
    """A point as the report has it. The circular chance is too small to be rounded."""
    return rounded(dataclasses.asdict(point)) | {"circular_chance": point.circular_chance}


def _table(points: Sequence[Point]) -> str:
    most = max(points, key=lambda point: point.samples_per_question)
    head = (
        f"Distractor Resistance: {most.questions} questions a number, {most.samples_per_question} samples each "
        f"(chance: plain {percent(CHANCE)}, circular {percent(most.circular_chance)})"
    )
    columns = [digits.by_naming(points, naming) for naming in digits.NAMINGS]
    rows = [["images", *(title for naming in digits.NAMINGS for title in (f"by {naming}: circular [95 %]", "plain"))]]
    for same_images in zip(*columns, strict=True):
        cells = [(with_interval(p.circular_accuracy, p.circular_interval_95), percent(p.plain_accuracy)) for p in same_images]
        rows.append([str(same_images[0].images), *(cell for pair in cells for cell in pair)])
    return "\n".join([head, *format_table(rows)])


def _figure(points: Sequence[Point]) -> Figure:
    """Circular and plain accuracy against the number of images, for each naming of the target."""
    curves = [curve for naming in digits.NAMINGS for curve in _curves(digits.by_naming(points, naming), naming)]
    most = max(points, key=lambda point: point.samples_per_question)
    note = (
        f"{most.questions} questions a point, each asked in {NUM_OPTIONS} option orders and with "
        f"{most.samples_per_question // NUM_OPTIONS} sets of distractors\n"
        "circular: a question counts when all its samples are right (bands: 95 % intervals)"
    )
    chances = _chances(digits.by_naming(points, digits.NAMINGS[0]))
    return draw_curves("Distractor Resistance on held-out handwritten digits", note, curves, chances, digits.TRAINED_IMAGES)


def _curves(points: Sequence[Point], naming: Naming) -> list[Curve]:
    images = [point.images for point in points]
    circular = [point.circular_accuracy for point in points]
    plain = [point.plain_accuracy for point in points]
    interval = [point.circular_interval_95 for point in points]
    return [
        Curve(f"asked by {naming}, circular", digits.CURVE_COLOURS[naming], images, circular, interval),
        Curve(f"asked by {naming}, plain", digits.CURVE_COLOURS[naming], images, plain, dashed=True),
    ]


def _chances(points: Sequence[Point]) -> list[ChanceLine]:
    images = [point.images for point in points]
    circular = [point.circular_chance for point in points]
    return [
        ChanceLine(f"chance, plain\n{percent(CHANCE)}", images, [CHANCE] * len(images)),
        ChanceLine(f"chance, circular\n{percent(circular[-1])}", images, circular),
    ]
