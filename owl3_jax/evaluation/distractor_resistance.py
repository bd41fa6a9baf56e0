"""Distractor Resistance: multiple choice about one image among N-1 distractors, scored by CircularEval.

After the paper (arXiv 2408.04840): `Image 1: <|image|> ... Image N: <|image|>. In Image X, {question}`, and a question counts
only when all of its samples, over option orders and over distractors, are answered right. Its code was not published. What
the paper leaves open is decided here, and stands in the report (`PROTOCOL`); beside the paper's index, the target is also
named by its colour.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from owl3_jax.config import EvalConfig
from owl3_jax.data.digits.questions import draw_options
from owl3_jax.evaluation.prompts import Naming, Prompt, QuestionSet, check_count, draw_scene, draw_target, make_prompt
from owl3_jax.evaluation.scores import circular_accuracy, circular_chance, parse_choice, wilson_interval

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


@dataclasses.dataclass(frozen=True)
class DistractorResistance:
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


def rotations(options: Sequence[int]) -> list[tuple[int, ...]]:
    """The options in all orders that CircularEval asks: each stands once at each letter."""
    return [(*options[start:], *options[:start]) for start in range(len(options))]


def make_questions(config: EvalConfig, naming: Naming, images: int) -> QuestionSet:
    """The questions about `images` images; samples follow each other draw by draw, rotation by rotation.

    Raises ConfigError when there are not so many held-out pictures.
    """
    check_count("distractor_images", images)
    draws = config.distractor_draws if images > 1 else 1
    prompts = []
    for question in range(config.distractor_questions):
        prompts += _question_samples(config.seed, naming, images, question, draws)
    return QuestionSet("distractor_resistance", naming, images, NUM_OPTIONS * draws, prompts)


def is_right(prompt: Prompt, answer: str) -> bool:
    """Whether `answer` chooses the right option."""
    return parse_choice(answer, prompt.options) == prompt.right_option


def score(questions: QuestionSet, answers: Sequence[str]) -> DistractorResistance:
    """Circular and plain accuracy; one answer to each prompt."""
    pairs = list(zip(questions.prompts, answers, strict=True))
    samples = questions.samples_per_question
    right = np.array([is_right(prompt, answer) for prompt, answer in pairs]).reshape(-1, samples)
    circular_right = int(right.all(axis=1).sum())
    return DistractorResistance(
        naming=questions.naming,
        images=questions.images,
        questions=len(right),
        samples_per_question=samples,
        circular_right=circular_right,
        circular_accuracy=circular_accuracy(right),
        circular_interval_95=wilson_interval(circular_right, len(right)),
        circular_chance=circular_chance(NUM_OPTIONS, samples),
        plain_accuracy=float(right.mean()),
        answers_without_choice=sum(parse_choice(answer, prompt.options) is None for prompt, answer in pairs),
    )


def _question_samples(seed: int, naming: Naming, images: int, question: int, draws: int) -> list[Prompt]:
    rng = np.random.default_rng([seed, _TASK, question])
    target = draw_target(rng)
    options = draw_options(rng, target.digit)
    scenes = [draw_scene(np.random.default_rng([seed, _TASK, question, images, draw]), target, images) for draw in range(draws)]
    return [make_prompt(scene, naming, order) for scene in scenes for order in rotations(options)]
