"""Exact match: the model says freely which digit the one image shows that the question means.

Question q for N images is drawn from the generator keyed by (seed, task, N, q): a target in a random colour, N-1 distractors
and the target's place. Both ways of naming the target are asked about the same pictures. An answer counts when all of its
text is right (`red 7`, or `7` by index), so the chance is that of guessing one digit in ten.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.prompts import Naming, Prompt, QuestionSet, check_count, draw_scene, draw_target, make_prompt
from owl3_jax.evaluation.scores import is_exact_match, wilson_interval

CHANCE = 0.1
_TASK = 0  # keeps random draws apart from those of other tasks


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """Score of one number of images."""

    naming: Naming
    images: int
    questions: int
    right: int
    accuracy: float
    interval_95: tuple[float, float]  # Wilson's


def make_questions(config: EvalConfig, naming: Naming, images: int) -> QuestionSet:
    """The questions about `images` images, `config.questions` of them.

    Raises ConfigError when there are not so many held-out pictures.
    """
    check_count("exact_match_images", images)
    rngs = (np.random.default_rng([config.seed, _TASK, images, question]) for question in range(config.questions))
    prompts = [make_prompt(draw_scene(rng, draw_target(rng), images), naming) for rng in rngs]
    return QuestionSet("exact_match", naming, images, 1, prompts)


def is_right(prompt: Prompt, answer: str) -> bool:
    """Whether `answer` is the expected one."""
    return is_exact_match(answer, prompt.expected)


def score(questions: QuestionSet, answers: Sequence[str]) -> ExactMatch:
    """The share of right answers; one answer to each prompt."""
    right = sum(is_right(prompt, answer) for prompt, answer in zip(questions.prompts, answers, strict=True))
    total = len(questions.prompts)
    return ExactMatch(questions.naming, questions.images, total, right, right / total, wilson_interval(right, total))
