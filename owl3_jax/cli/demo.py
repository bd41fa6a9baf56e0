"""Asks the checkpoint that ships with the package about handwritten digits.

    owl3 demo
    owl3 demo --questions 10 --seed 1

The model has 265 k parameters and was trained by `make demo`, which showed it none of the pictures
that it is asked about here. On a terminal the pictures are drawn, elsewhere they are described.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence

import numpy as np
import tyro
from jaxtyping import UInt8

import owl3_jax
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.tasks.digits_prompts import (
    decoded_picture,
    draw_scene,
    draw_target,
    make_question,
    open_picture,
    picture_of,
)
from owl3_jax.formats.bundled import bundled_checkpoint
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.processing.chat import IMAGE

_NUMBERS_OF_PICTURES = (1, 2, 4, 8)  # of the questions, in turn
_HALF_BLOCK = "\033[38;2;{};{};{};48;2;{};{};{}m\N{UPPER HALF BLOCK}\033[0m"  # two pixels, one above the other


@dataclasses.dataclass(frozen=True)
class Flags:
    """Asks the checkpoint that ships with the package about handwritten digits."""

    questions: int = 4  # number of questions
    seed: int = 0  # random seed of the questions

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"--questions must be at least 1, got {self.questions}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints questions with the model's answers."""
    flags = tyro.cli(Flags, args=argv, prog="owl3 demo", description=__doc__)
    use_compilation_cache()
    began = time.monotonic()
    owl, right = owl3_jax.from_pretrained(bundled_checkpoint("digits")), 0
    for question in draw_questions(flags.questions, flags.seed):
        images = [open_picture(DataRoot(), name) for name in question.images]
        text = owl.generate(question.text, images, max_new_tokens=8)
        right += text == question.gold
        print(f"{show(question)}\n{question.text.rpartition(IMAGE)[2].strip()}  {text}\n", flush=True)
    print(
        f"{right} of {flags.questions} right, {time.monotonic() - began:.0f} s with loading and compiling. For your own digit:"
    )
    print('owl3 generate --checkpoint digits --image FILE --prompt "Which digit is red?"')


def draw_questions(count: int, seed: int) -> list[Question]:
    """Questions by colour about held-out digits."""
    rng = np.random.default_rng(seed)
    numbers = np.resize(_NUMBERS_OF_PICTURES, count).tolist()
    scenes = [draw_scene(rng, draw_target(rng), number) for number in numbers]
    return [make_question(scene, "colour", name=str(index)) for index, scene in enumerate(scenes)]


def show(question: Question) -> str:
    """The pictures of a question: drawn side by side on a terminal, else in words."""
    pictures = [picture_of(name) for name in question.images]
    if not sys.stdout.isatty():
        return ", ".join(f"{picture.colour} {picture.digit}" for picture in pictures)
    rows = zip(*(draw(np.asarray(decoded_picture(picture))) for picture in pictures), strict=True)
    return "\n".join("  ".join(row) for row in rows)


def draw(pixels: UInt8[np.ndarray, "height width 3"]) -> list[str]:
    """The lines of a picture in terminal colours, each of two rows of pixels."""
    pairs = zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True)
    return ["".join(_HALF_BLOCK.format(*above, *below) for above, below in zip(*pair, strict=True)) for pair in pairs]
