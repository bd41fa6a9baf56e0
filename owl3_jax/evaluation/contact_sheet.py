"""A figure of questions with their images and answers."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.samples import Sample
from owl3_jax.evaluation.task import Task
from owl3_jax.inference.memory import FAILURES
from owl3_jax.processing.chat import IMAGE
from owl3_jax.processing.images import load_image

SHEET_NOTE = "One question from each of several sets, chosen without looking at the answers; the image asked about is framed"
_MOST_LETTERS = 200  # of a text
_MOST_IMAGES = 20  # of a question that is shown; more would be too small to see

CARDS_PER_ROW = 4
CARD_WIDTH, CARD_HEIGHT = 100, 112  # in the card's own units, y downwards
BOX_TOP, BOX_WIDTH, BOX_HEIGHT = 13, 90, 62  # where a card's images go
LARGEST_TILE = 44.0  # a single image doesn't fill its card
TILE_GAP = 0.06  # of a tile
INCH = 32  # card units
TILE_PIXELS = 64  # of an enlarged image, before the figure scales it

RIGHT, WRONG, INK, GREY, PAPER = "#1a8a34", "#cc2b2b", "#222222", "#666666", "#f6f6f4"


class Card(NamedTuple):
    """One question with its answer."""

    title: str  # what kind of question
    images: Sequence[Image.Image]
    target: int | None  # which image is asked about, if it is one
    question: str  # without the images' placeholders; the options of a multiple choice follow on lines of their own
    answer: str
    expected: str
    is_right: bool


def cards_of(samples: Sequence[Sample], data: DataRoot, tasks: Mapping[str, Task], count: int) -> list[Card]:
    """A question from each of `count` sets, evenly spread over those with few images: the answers have no influence.

    A set is a split of a task with one number of images; of a group of questions, its first is in it. Sets may ask about the
    same images, so the second one shown gives its second question, and so on. Questions on videos, and those whose images
    cannot be read, are not shown.
    """
    sets: dict[tuple[str, str, int], list[Sample]] = {}
    groups: set[tuple[str, str]] = set()
    for sample in samples:
        question = sample.answered.question
        group = sample.task, question.group
        if question.group and group in groups:
            continue
        groups.add(group)
        if 1 <= len(question.images) <= _MOST_IMAGES and question.gold is not None:
            sets.setdefault((sample.task, question.split, len(question.images)), []).append(sample)
    listed = list(sets.values())
    places = np.linspace(0, len(listed) - 1, min(count, len(listed))).round().astype(int).tolist()
    chosen = [listed[place][number % len(listed[place])] for number, place in enumerate(places)]
    cards = (_card(sample, data, tasks) for sample in chosen)
    return [card for card in cards if card]


def _card(sample: Sample, data: DataRoot, tasks: Mapping[str, Task]) -> Card | None:
    question, answer, judged, _ = sample.answered
    try:
        images = [load_image(tasks[sample.task].image(data, name), name) for name in question.images]
    except FAILURES:
        return None
    title = f"{question.split or sample.task} · {len(images)} image{'s' if len(images) > 1 else ''}"
    *_, text = question.text.split(IMAGE)
    asked, said, gold = (each[:_MOST_LETTERS] for each in (text.lstrip(". \n"), answer, question.gold or ""))
    return Card(title, images, question.target, asked, said, gold, judged.official == 1)


def draw_contact_sheet(cards: Sequence[Card], note: str = SHEET_NOTE) -> Figure:
    """A figure of `cards`: each has its images (the one asked about framed), the question, and both answers, green or red."""
    columns = min(CARDS_PER_ROW, len(cards))
    rows = math.ceil(len(cards) / columns)
    head = 0.4  # inches
    height = rows * CARD_HEIGHT / INCH + head
    figure = Figure(figsize=(columns * CARD_WIDTH / INCH, height), dpi=120)
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.55 * head / height, note, fontsize=11, color=GREY, ha="center", va="center", parse_math=False)
    grid = figure.add_gridspec(
        rows, columns, left=0.008, right=0.992, bottom=0.01, top=1 - head / height, wspace=0.04, hspace=0.04
    )
    for number, card in enumerate(cards):
        _draw_card(figure.add_subplot(grid[number // columns, number % columns]), card)
    return figure


def tile_layout(count: int) -> tuple[int, float]:
    """Columns and tile side (card units) of the grid in which `count` square images come out largest."""
    sides = {columns: min(BOX_WIDTH / columns, BOX_HEIGHT / math.ceil(count / columns)) for columns in range(1, count + 1)}
    columns = max(sides, key=sides.__getitem__)
    return columns, min(sides[columns], LARGEST_TILE)


def enlarge(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """`image` as RGB, with its pixels kept as squares if it is small."""
    return np.asarray(image.convert("RGB").resize((TILE_PIXELS, TILE_PIXELS), Image.Resampling.NEAREST))


def _draw_card(axes: Axes, card: Card) -> None:
    axes.set_axis_off()
    axes.add_patch(Rectangle((0, 0), CARD_WIDTH, CARD_HEIGHT, facecolor=PAPER, edgecolor="none", zorder=-1))
    color = RIGHT if card.is_right else WRONG
    axes.add_patch(Rectangle((0, 0), CARD_WIDTH, 1.6, facecolor=color, edgecolor="none", zorder=-1))
    _draw_images(axes, card)
    _draw_text(axes, card, color)
    axes.set(xlim=(0, CARD_WIDTH), ylim=(CARD_HEIGHT, 0), aspect="equal")


def _draw_images(axes: Axes, card: Card) -> None:
    columns, side = tile_layout(len(card.images))
    rows = math.ceil(len(card.images) / columns)
    left, top = (CARD_WIDTH - columns * side) / 2, BOX_TOP + (BOX_HEIGHT - rows * side) / 2
    gap = TILE_GAP * side
    for number, image in enumerate(card.images):
        x, y = left + side * (number % columns), top + side * (number // columns)
        axes.imshow(enlarge(image), extent=(x + gap, x + side - gap, y + side - gap, y + gap), interpolation="nearest")
        if number == card.target:
            axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=INK, linewidth=2, zorder=3))


def _draw_text(axes: Axes, card: Card, color: str) -> None:
    middle, mark = CARD_WIDTH / 2, "✓" if card.is_right else "✗"
    axes.text(middle, 7, card.title, fontsize=9.5, color=GREY, ha="center", va="center", parse_math=False)
    question, *options = card.question.split("\n")
    lines = [question, "   ".join(options)] if options else [question]
    axes.text(
        middle, 84, "\n".join(lines), fontsize=10.5, color=INK, ha="center", va="center", linespacing=1.3, parse_math=False
    )
    answer = card.answer or "(nothing)"
    axes.text(
        middle,
        96.5,
        f"{mark} model: {answer}",
        fontsize=11.5,
        fontweight="bold",
        color=color,
        ha="center",
        va="center",
        parse_math=False,
    )
    axes.text(middle, 105, f"right: {card.expected}", fontsize=9.5, color=GREY, ha="center", va="center", parse_math=False)
