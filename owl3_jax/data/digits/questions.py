"""Questions about tinted digits: pure functions from pictures to text, used by the builder and by evaluation.

    colour         <|image|><|image|>⏎Which digit is red?                                          red 7
    colour_choice  <|image|><|image|>⏎Which digit is red?⏎A. 3⏎B. 7⏎C. 1⏎D. 9                      red 7 B
    index          Image 1: <|image|> Image 2: <|image|>. In Image 2, which digit?                 Image 2: 7
    index_choice   Image 1: <|image|> Image 2: <|image|>. In Image 2, which digit?⏎A. 3⏎ ...       Image 2: 7 B
    colours        <|image|><|image|>⏎Describe the images.                                         red 7 blue 3
    indices        Image 1: <|image|> Image 2: <|image|>. Describe the images.                     Image 2: 7 Image 1: 3
    count          <|image|><|image|>⏎How many images?                                             2
    caption        <|image|>⏎Describe the image.                                                   a red 7

An answer repeats the name of its image: a tiny model quickly learns the digit right after the name. The questions by index are
the paper's (Distractor Resistance).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from owl3_jax.data.digits.images import COLOURS, DigitImage, digit_image
from owl3_jax.processing.chat import IMAGE, Message

QuestionKind = Literal["colour", "colour_choice", "index", "index_choice", "colours", "indices", "count", "caption"]

LETTERS = "ABCD"
_LABELLED: tuple[QuestionKind, ...] = ("index", "index_choice", "indices")


class Question(NamedTuple):
    """What is asked, without the images' placeholders, and the one right answer."""

    kind: QuestionKind
    text: str
    answer: str


def ask_colour(images: Sequence[DigitImage], target: int, options: Sequence[int] = ()) -> Question:
    """Asks for the digit of `images[target]` by its colour; with `options` (four digits) as multiple choice.

    Raises ValueError when another image has the same colour, or the options don't have the digit exactly once.
    """
    colour, digit = images[target].colour, images[target].digit
    if sum(image.colour == colour for image in images) != 1:
        raise ValueError(f"{colour} names more than one of the images {list(images)}; the target's colour must be unique")
    question, answer = f"Which digit is {colour}?", f"{colour} {digit}"
    if not options:
        return Question("colour", question, answer)
    return Question("colour_choice", question + option_lines(options), f"{answer} {_letter(options, digit)}")


def ask_index(images: Sequence[DigitImage], target: int, options: Sequence[int] = ()) -> Question:
    """Asks for the digit of `images[target]` by its number, counted from one; else as `ask_colour`."""
    question, digit = f"In Image {target + 1}, which digit?", images[target].digit
    answer = _by_index(images, target)
    if not options:
        return Question("index", question, answer)
    return Question("index_choice", question + option_lines(options), f"{answer} {_letter(options, digit)}")


def describe_by_colour(images: Sequence[DigitImage], order: Sequence[int]) -> Question:
    """Asks for the digits of `images[k]` for each k of `order`, which the answer keeps; images are named by their colours."""
    return Question("colours", "Describe the images.", " ".join(f"{images[k].colour} {images[k].digit}" for k in order))


def describe_by_index(images: Sequence[DigitImage], order: Sequence[int]) -> Question:
    """As `describe_by_colour`, by their numbers."""
    return Question("indices", "Describe the images.", " ".join(_by_index(images, k) for k in order))


def ask_count(images: Sequence[DigitImage]) -> Question:
    """Asks how many images there are."""
    return Question("count", "How many images?", str(len(images)))


def ask_caption(images: Sequence[DigitImage]) -> Question:
    """Asks for a description of the only image."""
    (image,) = images
    return Question("caption", "Describe the image.", f"a {image.colour} {image.digit}")


def option_lines(options: Sequence[int]) -> str:
    """The options, each on a line of its own: `⏎A. 3⏎B. 7⏎C. 1⏎D. 9`."""
    return "".join(f"\n{letter}. {digit}" for letter, digit in zip(LETTERS, options, strict=True))


def conversation(images: Sequence[DigitImage], questions: Sequence[Question], shown: Sequence[int] = ()) -> list[Message]:
    """User and assistant messages in turn; images are labelled when a question goes by index.

    `shown` is the number of further images that each question shows; by default the first one shows all.
    """
    place = _labelled_images if any(question.kind in _LABELLED for question in questions) else _plain_images
    messages: list[Message] = []
    start = 0
    for question, count in zip(questions, shown or [len(images), *[0] * (len(questions) - 1)], strict=True):
        messages.append({"role": "user", "content": (place(start, count) if count else "") + question.text})
        messages.append({"role": "assistant", "content": question.answer})
        start += count
    return messages


def prompt(images: Sequence[DigitImage], question: Question) -> list[Message]:
    """The conversation up to the answer."""
    return conversation(images, [question])[:-1]


def draw_image(rng: np.random.Generator, image_ids: Int[np.ndarray, " n"]) -> DigitImage:
    """One picture of `image_ids` in a colour, both at random."""
    return digit_image(int(rng.choice(image_ids)), str(rng.choice(list(COLOURS))))


def draw_distractors(
    rng: np.random.Generator, image_ids: Int[np.ndarray, " n"], target: DigitImage, count: int
) -> list[DigitImage]:
    """`count` other pictures, none in the target's colour; their colours differ as long as there are enough (seven)."""
    others = rng.choice(image_ids[image_ids != target.image_id], count, replace=False)
    colours = rng.permutation([colour for colour in COLOURS if colour != target.colour])
    tints = rng.permuted(np.resize(colours, count))
    return [digit_image(image_id, colour) for image_id, colour in zip(others.tolist(), tints.tolist(), strict=True)]


def draw_options(rng: np.random.Generator, digit: int) -> tuple[int, ...]:
    """Four different digits in random order, one of them `digit`."""
    others = [other for other in range(10) if other != digit]
    wrong = rng.choice(others, len(LETTERS) - 1, replace=False)
    return tuple(int(option) for option in rng.permutation([digit, *wrong]))


def _plain_images(start: int, count: int) -> str:
    del start
    return IMAGE * count + "\n"


def _labelled_images(start: int, count: int) -> str:
    return " ".join(f"Image {number + 1}: {IMAGE}" for number in range(start, start + count)) + ". "


def _by_index(images: Sequence[DigitImage], k: int) -> str:
    return f"Image {k + 1}: {images[k].digit}"


def _letter(options: Sequence[int], digit: int) -> str:
    if list(options).count(digit) != 1:
        raise ValueError(f"the options {list(options)} must hold the right digit {digit} exactly once")
    return LETTERS[list(options).index(digit)]
