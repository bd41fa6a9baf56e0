"""Individual questions of an evaluation, for inspection."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from owl3_jax.config import JsonTree
from owl3_jax.evaluation.answering import Answers
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.evaluation.task import AnyTask

MOST_IMAGES = 20  # more would be too small to see


class Sample(NamedTuple):
    """A question with the model's answer."""

    task: str
    card: Card


def choose(tasks: Sequence[AnyTask], answers: Answers, count: int) -> list[Sample]:
    """A question from each of `count` groups, evenly spread over those with few images: the answers have no influence.

    Groups may ask about the same images, so the second group shown gives its second question, and so on.
    """
    groups = [(task, group) for task in tasks for group in task.showcase() if group and len(group[0].images) <= MOST_IMAGES]
    places = np.linspace(0, len(groups) - 1, min(count, len(groups))).round().astype(int)
    samples = []
    for number, (task, group) in enumerate(groups[place] for place in places):
        prompt = group[number % len(group)]
        samples.append(Sample(task.name, task.card(prompt, answers[task.name, prompt.id])))
    return samples


def to_record(sample: Sample) -> JsonTree:
    """An entry of report.json."""
    card = sample.card
    return {
        "task": sample.task,
        **card.details,
        "images": list(card.image_names),
        "question": card.question,
        "answer": card.answer,
        "expected": card.expected,
        "right": card.is_right,
    }
