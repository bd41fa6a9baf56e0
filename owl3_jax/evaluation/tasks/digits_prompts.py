"""What the tasks on held-out handwritten digits share: scenes, questions about them, and their images.

An image's name says which one it is: `digits/1203/red`.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from owl3_jax.config import ConfigError
from owl3_jax.data.digits.images import COLOURS, NUM_IMAGES, DigitImage, digit_image, encoded_image, split_ids
from owl3_jax.data.digits.questions import ask_colour, ask_index, draw_distractors, draw_image, prompt
from owl3_jax.data.digits.samples import IMAGE_COUNTS, MANY_IMAGES
from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.processing.images import ImageSource, load_image

Naming = Literal["colour", "index"]  # how a question says which image it means; the paper's way is the index
NAMINGS: tuple[Naming, ...] = ("colour", "index")
TRAINED_IMAGES = (min(IMAGE_COUNTS), max(MANY_IMAGES))  # images of a training sample, fewest and most
MAX_NEW_TOKENS = 8


class Scene(NamedTuple):
    """Pictures to ask about; no other has the target's colour."""

    images: list[DigitImage]
    target: int


def held_out_ids() -> Int[np.ndarray, " n"]:
    """The pictures that questions are made of; no training sample shows any of them."""
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


def make_question(scene: Scene, naming: Naming, options: Sequence[int] = (), *, name: str, group: str = "") -> Question:
    """Asks for the target's digit, freely or (with four digits as `options`) by multiple choice."""
    ask = {"colour": ask_colour, "index": ask_index}[naming]
    asked = ask(scene.images, scene.target, options)
    images, digit = len(scene.images), scene.images[scene.target].digit
    return Question(
        id=f"{naming}/{images}/{name}",
        text=prompt(scene.images, asked)[0]["content"],
        gold=LETTERS[list(options).index(digit)] if options else asked.answer,
        images=tuple(map(picture_name, scene.images)),
        options=tuple(map(str, options)),
        split=f"by {naming}",
        group=f"{naming}/{images}/{group}" if group else "",
        target=scene.target,
        facts={"images": images},
    )


def picture_name(image: DigitImage) -> str:
    """An image's name."""
    return f"digits/{image.image_id}/{image.colour}"


def picture_of(name: str) -> DigitImage:
    """The picture of a name. Raises DataError."""
    match name.split("/"):
        case ["digits", number, colour] if number.isdecimal() and int(number) < NUM_IMAGES and colour in COLOURS:
            return digit_image(int(number), colour)
    raise DataError(f"there is no digit {name!r}")


def open_picture(data: DataRoot, name: str) -> ImageSource:
    """The image of a name. Raises DataError."""
    del data  # they are in memory
    return decoded_picture(picture_of(name))


@functools.cache
def decoded_picture(image: DigitImage) -> Image.Image:
    """The same object for the same picture, since many questions share it."""
    return load_image(encoded_image(image), picture_name(image))


def check_counts(field: str, counts: Sequence[int]) -> None:
    """Raises ConfigError when a question with so many images needs more pictures than are held out."""
    most = len(held_out_ids())
    if max(counts) > most:
        raise ConfigError(f"eval.{field} names {max(counts)} images, but only {most} are held out; name at most {most}")
