"""What the training samples are made of: how many images, how many turns, which questions.

Most samples describe all their images ("red 7 blue 3 ..."): an answer for each image, in an order that can't be guessed, and
few words around it. The rest ask for one digit at a time, as evaluation does. In some samples the images come a few at a time,
each group with its description, so that what is near is described before what is far.
"""

from collections import Counter
from collections.abc import Mapping
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
    describe_by_colour,
    describe_by_index,
    draw_distractors,
    draw_image,
    draw_options,
)

# Images of a sample -> relative frequency. All colours of a sample differ up to eight.
IMAGE_COUNTS = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 3, 7: 1, 8: 2}
FEW_IMAGES = {1: 2, 2: 1}  # in the first stage
MANY_IMAGES = {12: 1, 16: 1}
MOST_QUESTIONS = 3  # of one sample, about different images
MOST_CHOICES = 2  # of them are multiple choice, at most
INDEX_SHARE = 0.6  # of the samples; the others name images by colour
DESCRIBED_SHARE = 0.75  # of the samples whose images all have a name: all are described
ASKED_AFTER_SHARE = 0.5  # of those: one question follows
GROUPED_SHARE = 0.5  # of the samples with 2 to 4 images: they come in groups
MOST_GROUPED, LARGEST_GROUP = 4, 3
CHOICE_SHARE = 0.5  # of the questions for a digit, up to `MOST_CHOICES`
COUNT_SHARE = 0.1  # of the samples by colour: one more turn
CAPTION_SHARE = 0.5  # of the samples by colour with one image: one more turn


class DigitSample(NamedTuple):
    """The images of a conversation and its turns."""

    images: list[DigitImage]
    questions: list[Question]
    shown: list[int]  # how many further images each of the questions shows


def draw_sample(
    rng: np.random.Generator, image_ids: Int[np.ndarray, " n"], counts: Mapping[int, int] = IMAGE_COUNTS
) -> DigitSample:
    """One sample from the pictures `image_ids`, distributed as `counts` and the constants of this module say."""
    images = _draw_images(rng, image_ids, counts)
    by_index = rng.random() < INDEX_SHARE
    named = range(len(images)) if by_index else _with_own_colour(images)
    describe = describe_by_index if by_index else describe_by_colour
    is_described = rng.random() < DESCRIBED_SHARE and len(named) == len(images)
    questions: list[Question] = []
    shown: list[int] = []
    start = 0
    for size in _draw_groups(rng, len(images)):
        stop = start + size
        if is_described or stop < len(images):  # images that are shown are spoken of before the next ones come
            questions.append(describe(images, (start + rng.permutation(size)).tolist()))
            shown.append(size)
            start = stop
    most = 1 if questions else MOST_QUESTIONS
    asked = int(rng.random() < ASKED_AFTER_SHARE) if is_described else most
    for number, target in enumerate(rng.permutation(named)[:asked].tolist()):
        is_choice = rng.random() < CHOICE_SHARE and number < MOST_CHOICES
        options = draw_options(rng, images[target].digit) if is_choice else ()
        questions.append((ask_index if by_index else ask_colour)(images, target, options))
    if not by_index:
        questions += _draw_other_questions(rng, images)
    shown += [len(images) - start, *[0] * len(questions)]
    return DigitSample(images, questions, shown[: len(questions)])


def _draw_images(rng: np.random.Generator, image_ids: Int[np.ndarray, " n"], counts: Mapping[int, int]) -> list[DigitImage]:
    frequencies = np.array(list(counts.values())) / sum(counts.values())
    count = int(rng.choice(list(counts), p=frequencies))
    first = draw_image(rng, image_ids)
    images = [first, *draw_distractors(rng, image_ids, first, count - 1)]
    return [images[place] for place in rng.permutation(count)]


def _with_own_colour(images: list[DigitImage]) -> list[int]:
    """The images whose colour no other one has."""
    frequencies = Counter(image.colour for image in images)
    return [place for place, image in enumerate(images) if frequencies[image.colour] == 1]


def _draw_groups(rng: np.random.Generator, count: int) -> list[int]:
    """Sizes of the groups in which images come."""
    if rng.random() >= GROUPED_SHARE or count > MOST_GROUPED:
        return [count]
    groups: list[int] = []
    while count:
        groups.append(int(rng.integers(1, min(count, LARGEST_GROUP) + 1)))
        count -= groups[-1]
    return groups


def _draw_other_questions(rng: np.random.Generator, images: list[DigitImage]) -> list[Question]:
    questions = []
    if rng.random() < COUNT_SHARE:
        questions.append(ask_count(images))
    if len(images) == 1 and rng.random() < CAPTION_SHARE:
        questions.append(ask_caption(images))
    return questions
