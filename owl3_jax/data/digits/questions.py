"""Questions about tinted digits: pure functions from pictures to text, used by the builder and by evaluation.

    colour         <|image|><|image|>⏎Which digit is red?                                          red 7
    colour_choice  <|image|><|image|>⏎Which digit is red?⏎A. 3⏎B. 7⏎C. 1⏎D. 9                      red 7 B
    index          Image 1: <|image|> Image 2: <|image|>. In Image 2, which digit?                 7
    index_choice   Image 1: <|image|> Image 2: <|image|>. In Image 2, which digit?⏎A. 3⏎ ...       7 B
    count          <|image|><|image|>⏎How many images?                                             2
    caption        <|image|>⏎Describe the image.                                                   a red 7

An answer about a colour repeats it: a tiny model quickly learns the digit right after the colour's name. The index form is the
paper's (Distractor Resistance).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from owl3_jax.data.digits.images import COLOURS, DigitImage, digit_image
from owl3_jax.processing.chat import IMAGE, Message

QuestionKind = Literal["colour", "colour_choice", "index", "index_choice", "count", "caption"]

LETTERS = "ABCD"
_LABELLED: tuple[QuestionKind, ...] = ("index", "index_choice")


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
    if not options:
        return Question("index", question, str(digit))
    return Question("index_choice", question + option_lines(options), f"{digit} {_letter(options, digit)}")


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


def conversation(images: Sequence[DigitImage], questions: Sequence[Question]) -> list[Message]:
    """User and assistant messages in turn; the first one shows the images, labelled when a question goes by index."""
    labelled = any(question.kind in _LABELLED for question in questions)
    prefix = _labelled_images(len(images)) if labelled else IMAGE * len(images) + "\n"
    messages: list[Message] = []
    for question in questions:
        messages.append({"role": "user", "content": prefix + question.text})
        messages.append({"role": "assistant", "content": question.answer})
        prefix = ""
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


def _labelled_images(count: int) -> str:
    return " ".join(f"Image {number}: {IMAGE}" for number in range(1, count + 1)) + ". "


def _letter(options: Sequence[int], digit: int) -> str:
    if list(options).count(digit) != 1:
        raise ValueError(f"the options {list(options)} must hold the right digit {digit} exactly once")
    return LETTERS[list(options).index(digit)]
