"""Questions about held-out digits, as they are put to the model."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from owl3_jax.config import ConfigError
from owl3_jax.data.digits.images import DigitImage, encoded_image, split_ids
from owl3_jax.data.digits.questions import Question, ask_colour, ask_index, draw_distractors, draw_image, prompt
from owl3_jax.processing.chat import Message

Task = Literal["exact_match", "distractor_resistance"]
Naming = Literal["colour", "index"]  # how a question says which image it means; the paper's way is the index
NAMINGS: tuple[Naming, ...] = ("colour", "index")


class ImageFile(NamedTuple):
    """An encoded image, decoded only when its batch is made, and the name that errors give it."""

    name: str
    encoded: bytes


class Prompt(NamedTuple):
    """One question with its images, and the answer that is right."""

    messages: list[Message]
    images: tuple[ImageFile, ...]
    target: int  # which of the images is asked for
    question: str  # without the images' placeholders
    expected: str
    options: tuple[str, ...] = ()  # of a multiple-choice question, in the order shown
    right_option: int | None = None


class QuestionSet(NamedTuple):
    """What is asked for one point of a curve."""

    task: Task
    naming: Naming
    images: int
    samples_per_question: int  # prompts that are one question, and stand one behind the other
    prompts: list[Prompt]


class Scene(NamedTuple):
    """Pictures to ask about; the target's colour is nobody else's."""

    images: list[DigitImage]
    target: int


def held_out_ids() -> np.ndarray:
    """The pictures that questions are made of [n] int64; no training sample shows any of them."""
    return split_ids("test")


def draw_scene(rng: np.random.Generator, target: DigitImage, count: int) -> Scene:
    """`target` at a random place among `count - 1` other held-out pictures.

    Distractors may show the target's digit. Up to seven of them differ in colour; beyond, their colours repeat.
    """
    place = int(rng.integers(count))
    images = draw_distractors(rng, held_out_ids(), target, count - 1)
    images.insert(place, target)
    return Scene(images, place)


def draw_target(rng: np.random.Generator) -> DigitImage:
    """A held-out picture in a random colour."""
    return draw_image(rng, held_out_ids())


def make_prompt(scene: Scene, naming: Naming, options: Sequence[int] = ()) -> Prompt:
    """Asks for the target's digit, freely or (with four digits as `options`) by multiple choice."""
    question = _ask(scene, naming, options)
    return Prompt(
        messages=prompt(scene.images, question),
        images=tuple(image_file(image) for image in scene.images),
        target=scene.target,
        question=question.text,
        expected=question.answer,
        options=tuple(str(option) for option in options),
        right_option=options.index(scene.images[scene.target].digit) if options else None,
    )


def _ask(scene: Scene, naming: Naming, options: Sequence[int]) -> Question:
    ask = {"colour": ask_colour, "index": ask_index}[naming]
    return ask(scene.images, scene.target, options)


@functools.cache
def image_file(image: DigitImage) -> ImageFile:
    """The picture as a file; the same object for the same picture."""
    return ImageFile(f"held-out digit {image.image_id} in {image.colour}", encoded_image(image))


def check_count(field: str, images: int) -> None:
    """Raises ConfigError when a question with `images` images needs more pictures than are held out."""
    most = len(held_out_ids())
    if images > most:
        raise ConfigError(f"eval.{field} names {images} images, but only {most} are held out; name at most {most}")
