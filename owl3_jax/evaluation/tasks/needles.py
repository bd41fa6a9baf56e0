"""Needle among images: one of N photographs has a number on it, and the model is asked which number: `needles:FOLDER`.

The photographs are any that a folder has. Question q for N images takes N of them (again from the beginning where there are
fewer), a place for the needle and a number of four digits from the generator keyed by (seed, N, q); places are spread evenly
over all N.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from owl3_jax.evaluation.by_images import accuracy_by_images, curves_of, heat_map
from owl3_jax.evaluation.curves import draw_curves
from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.host import storage
from owl3_jax.processing.images import ImageSource, load_image
from owl3_jax.processing.video import IMAGE_SUFFIXES

PREFIX = "needles:"
_QUESTIONS = 40  # for each N
_TASK = 3  # keeps random draws apart from those of other tasks
_ASKED = "One of these images has a white box with a number of four digits. Which number is it? Answer with the number only."


def make_task(name: str) -> Task:
    """The task of `needles:FOLDER`."""
    folder = name.removeprefix(PREFIX)
    about = About(f"Needles in photographs of {folder}", (f"{folder}/*",), "any folder of photographs")
    read_folder = functools.partial(read, folder=folder)
    return Task(name, about, read_folder, judge, accuracy_by_images, image, figures, crop=False)


def read(data: DataRoot, folder: str) -> list[Question]:
    """The questions for each N of `eval.needle_images`. Raises DataError where there is no photograph."""
    place = folder if storage.is_url(folder) else str(Path(folder).expanduser().absolute())
    photographs = [found for found in storage.find(f"{place}/*") if found.lower().endswith(IMAGE_SUFFIXES)]
    if not photographs:
        raise DataError(f"{folder} has no photographs ({', '.join(IMAGE_SUFFIXES)})")
    return [
        _question(data.settings.seed, photographs, count, number)
        for count in sorted(set(data.settings.needle_images))
        for number in range(_QUESTIONS)
    ]


def image(data: DataRoot, name: str) -> ImageSource:
    """A photograph; with the number after the last `#` on it, if there is one."""
    file, _, number = name.rpartition("#")
    if not number.isdecimal() or len(number) != 4:
        return data.file(name)
    return with_needle(load_image(data.file(file), file), number)


def with_needle(photograph: Image.Image, number: str) -> Image.Image:
    """The photograph with a number in a white box in its middle, a third as wide as the picture is."""
    picture = photograph.convert("RGB")
    size = max(10, picture.width // 8)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(picture)
    middle = (picture.width / 2, picture.height / 2)
    left, top, right, bottom = draw.textbbox(middle, number, font=font, anchor="mm")
    border = size / 4
    draw.rectangle((left - border, top - border, right + border, bottom + border), fill="white")
    draw.text(middle, number, font=font, fill="black", anchor="mm")
    return picture


def judge(question: Question, answer: str) -> Judged:
    """Whether the answer has the number on the photograph, and no other number of four digits."""
    numbers = set("".join(letter if letter.isdecimal() else " " for letter in answer).split())
    found = sorted(number for number in numbers if len(number) == 4)
    right = float(found == [question.gold])
    return Judged(right, right, " ".join(found), " ".join(found))


def figures(answered: Sequence[Answered]) -> dict[str, Figure]:
    """Accuracy by N, and by N and the needle's place."""
    title = "Needle among photographs"
    curves = curves_of(accuracy_by_images(answered)["official"])
    return {
        "needles.png": draw_curves(title, "bands: 95 % intervals", curves, [], None),
        "needles_places.png": heat_map(answered, title),
    }


def _question(seed: int, photographs: Sequence[str], count: int, number: int) -> Question:
    rng = np.random.default_rng([seed, _TASK, count, number])
    shown = [photographs[place] for place in np.resize(rng.permutation(len(photographs)), count).tolist()]
    target = number * count // _QUESTIONS
    gold = str(rng.integers(1000, 10000))
    shown[target] = f"{shown[target]}#{gold}"
    text = "".join("<|image|>\n" for _ in shown) + _ASKED
    return Question(f"{count}/{number}", text, gold, tuple(shown), target=target, facts={"images": count})
