"""Single questions of an evaluation, to be looked at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from owl3_jax.evaluation import distractor_resistance, exact_match
from owl3_jax.evaluation.contact_sheet import AnsweredQuestion
from owl3_jax.evaluation.prompts import Prompt, QuestionSet
from owl3_jax.processing.images import load_image

MOST_IMAGES = 20  # more would be too small to see


class Shown(NamedTuple):
    """A prompt with the model's answer."""

    questions: QuestionSet  # where it comes from
    prompt: Prompt
    answer: str

    @property
    def is_right(self) -> bool:
        """By the rule of its task."""
        rules = {"exact_match": exact_match.is_right, "distractor_resistance": distractor_resistance.is_right}
        return rules[self.questions.task](self.prompt, self.answer)


def choose(sets: Sequence[QuestionSet], answers: Sequence[Sequence[str]], count: int) -> list[Shown]:
    """A question each of `count` sets, evenly spread over those with few images: no answer has a say in it.

    Sets ask about the same pictures, so the second set shown gives its second question, and so on.
    """
    few = [(questions, given) for questions, given in zip(sets, answers, strict=True) if questions.images <= MOST_IMAGES]
    places = np.linspace(0, len(few) - 1, min(count, len(few))).round().astype(int)
    chosen = []
    for number, (questions, given) in enumerate(few[place] for place in places):
        index = number * questions.samples_per_question % len(questions.prompts)
        chosen.append(Shown(questions, questions.prompts[index], given[index]))
    return chosen


def to_card(shown: Shown) -> AnsweredQuestion:
    """A card of the contact sheet."""
    question, *options = shown.prompt.question.split("\n")
    images = shown.questions.images
    return AnsweredQuestion(
        title=f"by {shown.questions.naming} · {images} image{'s' if images > 1 else ''}",
        images=[load_image(file.encoded, file.name) for file in shown.prompt.images],
        target=shown.prompt.target,
        question="\n".join([question, *(["   ".join(options)] if options else [])]),
        answer=shown.answer,
        expected=shown.prompt.expected,
        is_right=shown.is_right,
    )


def to_record(shown: Shown) -> dict[str, Any]:
    """An entry of report.json."""
    return {
        "task": shown.questions.task,
        "naming": shown.questions.naming,
        "images": [file.name for file in shown.prompt.images],
        "question": shown.prompt.question,
        "answer": shown.answer,
        "expected": shown.prompt.expected,
        "right": shown.is_right,
    }
