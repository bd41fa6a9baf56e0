"""What the training samples are made of: how many images, how many turns, which questions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from owl3_jax.data.digits.images import DigitImage
from owl3_jax.data.digits.questions import (
    Question,
    ask_caption,
    ask_colour,
    ask_count,
    ask_index,
    draw_distractors,
    draw_image,
    draw_options,
)

# Images of a sample -> relative frequency. All colours of a sample differ, so eight is the most.
IMAGE_COUNTS = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 3, 7: 1, 8: 2}
MOST_QUESTIONS = 4  # of one sample, about different images
INDEX_SHARE = 0.1  # of the samples; the others ask by colour
CHOICE_SHARE = 0.12  # of the questions for a digit
COUNT_SHARE = 0.1  # of the samples by colour: one more turn
CAPTION_SHARE = 0.5  # of the samples by colour with one image: one more turn


class DigitSample(NamedTuple):
    """The images of a conversation and its turns."""

    images: list[DigitImage]
    questions: list[Question]


def draw_sample(rng: np.random.Generator, image_ids: Int[np.ndarray, " n"]) -> DigitSample:
    """One sample from the pictures `image_ids`, distributed as the constants of this module say."""
    images = _draw_images(rng, image_ids)
    ask = ask_index if rng.random() < INDEX_SHARE else ask_colour
    targets = rng.permutation(len(images))[:MOST_QUESTIONS].tolist()
    questions = []
    for target in targets:
        is_choice = rng.random() < CHOICE_SHARE
        questions.append(ask(images, target, draw_options(rng, images[target].digit) if is_choice else ()))
    if ask is ask_colour:
        questions = _with_other_questions(rng, images, questions)
    return DigitSample(images, questions)


def _draw_images(rng: np.random.Generator, image_ids: Int[np.ndarray, " n"]) -> list[DigitImage]:
    frequencies = np.array(list(IMAGE_COUNTS.values())) / sum(IMAGE_COUNTS.values())
    count = int(rng.choice(list(IMAGE_COUNTS), p=frequencies))
    first = draw_image(rng, image_ids)
    return [first, *draw_distractors(rng, image_ids, first, count - 1)]


def _with_other_questions(rng: np.random.Generator, images: list[DigitImage], questions: list[Question]) -> list[Question]:
    questions = list(questions)
    if rng.random() < COUNT_SHARE:
        questions.insert(int(rng.integers(len(questions) + 1)), ask_count(images))
    if len(images) == 1 and rng.random() < CAPTION_SHARE:
        questions.insert(int(rng.integers(len(questions) + 1)), ask_caption(images))
    return questions
