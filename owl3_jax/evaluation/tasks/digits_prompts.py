"""What the tasks on held-out handwritten digits share: scenes, prompts about them, and how they are shown."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int
from PIL import Image

from owl3_jax.config import ConfigError
from owl3_jax.data.digits.images import DigitImage, encoded_image, split_ids
from owl3_jax.data.digits.questions import Question, ask_colour, ask_index, draw_distractors, draw_image, prompt
from owl3_jax.data.digits.samples import IMAGE_COUNTS, MANY_IMAGES
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.evaluation.task import Prompt, Score, Scored
from owl3_jax.processing.images import load_image

Naming = Literal["colour", "index"]  # how a question says which image it means; the paper's way is the index
NAMINGS: tuple[Naming, ...] = ("colour", "index")
CURVE_COLOURS: dict[Naming, str] = {"colour": "#1f6fb4", "index": "#d1651b"}
TRAINED_IMAGES = (min(IMAGE_COUNTS), max(MANY_IMAGES))  # images of a training sample, fewest and most


class DigitQuestion(NamedTuple):
    """A question about one of several digits."""

    naming: Naming
    pictures: tuple[DigitImage, ...]
    target: int  # which of the pictures is asked about
    text: str  # without the images' placeholders
    expected: str
    options: tuple[str, ...] = ()  # of a multiple-choice question, in the order shown
    right_option: int | None = None


DigitPrompt = Prompt[DigitQuestion]


class QuestionSet(NamedTuple):
    """What is asked for one point of a curve."""

    naming: Naming
    images: int
    prompts: list[DigitPrompt]  # the prompts of one question are consecutive
    samples_per_question: int = 1  # prompts that are one question

    @property
    def first_samples(self) -> list[DigitPrompt]:
        """A prompt for each question."""
        return self.prompts[:: self.samples_per_question]


class Scene(NamedTuple):
    """Pictures to ask about; no other has the target's colour."""

    images: list[DigitImage]
    target: int


@runtime_checkable
class Point(Protocol):
    """A score for one naming and one number of images."""

    @property
    def naming(self) -> Naming: ...

    @property
    def images(self) -> int: ...


AnyPoint = TypeVar("AnyPoint", bound=Point)


def make_sets(counts: Sequence[int], make_questions: Callable[[Naming, int], QuestionSet]) -> list[QuestionSet]:
    """The sets of both namings, by colour first, each with the numbers of images `counts`, rising."""
    return [make_questions(naming, images) for naming, images in itertools.product(NAMINGS, sorted(set(counts)))]


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


def make_prompt(scene: Scene, naming: Naming, options: Sequence[int] = (), *, name: str) -> DigitPrompt:
    """Asks for the target's digit, freely or (with four digits as `options`) by multiple choice."""
    question = _ask(scene, naming, options)
    return Prompt(
        id=f"{naming}/{len(scene.images)}/{name}",
        messages=prompt(scene.images, question),
        question=DigitQuestion(
            naming=naming,
            pictures=tuple(scene.images),
            target=scene.target,
            text=question.text,
            expected=question.answer,
            options=tuple(str(option) for option in options),
            right_option=options.index(scene.images[scene.target].digit) if options else None,
        ),
        images=[decoded_image(image) for image in scene.images],
    )


def _ask(scene: Scene, naming: Naming, options: Sequence[int]) -> Question:
    ask = {"colour": ask_colour, "index": ask_index}[naming]
    return ask(scene.images, scene.target, options)


@functools.cache
def decoded_image(image: DigitImage) -> Image.Image:
    """The picture as an image; the same object for the same picture, since many questions share it."""
    return load_image(encoded_image(image), picture_name(image))


def picture_name(image: DigitImage) -> str:
    """What a report calls the picture."""
    return f"held-out digit {image.image_id} in {image.colour}"


def check_counts(field: str, counts: Sequence[int]) -> None:
    """Raises ConfigError when a question with so many images needs more pictures than are held out."""
    most = len(held_out_ids())
    if max(counts) > most:
        raise ConfigError(f"eval.{field} names {max(counts)} images, but only {most} are held out; name at most {most}")


def by_set(scored: Sequence[Scored[DigitQuestion, Score]]) -> Iterator[tuple[Naming, int, list[Scored[DigitQuestion, Score]]]]:
    """The naming, the number of images and the answers of each set, in the order of the prompts."""
    key = lambda each: (each.question.naming, len(each.question.pictures))
    for (naming, images), answers in itertools.groupby(scored, key=key):
        yield naming, images, list(answers)


def by_naming(points: Sequence[AnyPoint], naming: Naming) -> list[AnyPoint]:
    """Those of `points` that name the target by `naming`, by the number of images."""
    return sorted((point for point in points if point.naming == naming), key=lambda point: point.images)


def make_card(question: DigitQuestion, answer: str, *, is_right: bool) -> Card:
    """A question with its answer, for inspection."""
    images = len(question.pictures)
    return Card(
        title=f"by {question.naming} · {images} image{'s' if images > 1 else ''}",
        images=[decoded_image(image) for image in question.pictures],
        image_names=[picture_name(image) for image in question.pictures],
        target=question.target,
        question=question.text,
        answer=answer,
        expected=question.expected,
        is_right=is_right,
        details={"naming": question.naming},
    )
