"""The sheet of questions, pictures and answers."""

import numpy as np
import pytest
from PIL import Image

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.contact_sheet import (
    BOX_HEIGHT,
    BOX_WIDTH,
    RIGHT,
    TILE_PIXELS,
    WRONG,
    Card,
    cards_of,
    draw_contact_sheet,
    enlarge,
    tile_layout,
)
from owl3_jax.evaluation.curves import save_figure
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.samples import Sample, judged
from owl3_jax.evaluation.tasks.digits_distractors import DIGITS_DISTRACTORS
from owl3_jax.evaluation.tasks.digits_exact import DIGITS_EXACT
from tests.unit.evaluation.toys import counting

QUESTION = "Which digit is red?"


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 0, 0))


def card(images: int, *, is_right: bool = True, answer: str = "red 7") -> Card:
    pictures = [picture(10 * number) for number in range(images)]
    return Card(f"by colour, {images}", pictures, images - 1, QUESTION, answer, "red 7", is_right)


@pytest.mark.parametrize("count", range(1, 24))
def test_all_tiles_fit_the_box(count):
    columns, side = tile_layout(count)
    rows = -(-count // columns)
    assert columns * side <= BOX_WIDTH + 1e-9 and rows * side <= BOX_HEIGHT + 1e-9
    assert columns * (rows - 1) < count


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (5, 3), (8, 4), (20, 5)])
def test_tiles_are_laid_out_to_be_large(count, columns):
    assert tile_layout(count)[0] == columns


def test_small_images_are_enlarged_to_squares_of_one_colour():
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    large = enlarge(Image.fromarray(pixels))
    assert large.shape == (TILE_PIXELS, TILE_PIXELS, 3)
    np.testing.assert_array_equal(large, pixels.repeat(TILE_PIXELS // 8, axis=0).repeat(TILE_PIXELS // 8, axis=1))


def test_a_card_shows_question_both_answers_and_every_image():
    figure = draw_contact_sheet([card(5, answer="red 1", is_right=False), card(3)], "a note")
    wrong, right = figure.axes
    assert len(wrong.images) == 5 and len(right.images) == 3
    texts = [text.get_text() for text in wrong.texts]
    assert texts == ["by colour, 5", "Which digit is red?", "✗ model: red 1", "right: red 7"]
    assert wrong.texts[2].get_color() == WRONG and right.texts[2].get_color() == RIGHT
    assert right.texts[2].get_text() == "✓ model: red 7"


def test_the_image_asked_for_is_framed():
    axes = draw_contact_sheet([card(5)], "a note").axes[0]
    frame = axes.patches[-1]
    left, right, bottom, top = axes.images[4].get_extent()
    assert frame.get_x() < left < right < frame.get_x() + frame.get_width()
    assert frame.get_y() < top < bottom < frame.get_y() + frame.get_height()


def test_an_empty_answer_is_said():
    axes = draw_contact_sheet([card(1, answer="", is_right=False)], "a note").axes[0]
    assert axes.texts[2].get_text() == "✗ model: (nothing)"


def test_a_sheet_of_several_rows_is_written(tmp_path):
    path = save_figure(draw_contact_sheet([card(images) for images in (1, 2, 3, 5, 7)], "a note"), tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.size[0] > 1200 and sheet.size[1] > 700


def test_options_take_one_line():
    axes = draw_contact_sheet([card(1)._replace(question="Which?\nA. 3\nB. 7\nC. 1")], "a note").axes[0]
    assert axes.texts[1].get_text() == "Which?\nA. 3   B. 7   C. 1"


def test_no_image_is_framed_when_none_is_asked_for():
    framed, free = draw_contact_sheet([card(3), card(3)._replace(target=None)], "a note").axes
    assert len(free.patches) == len(framed.patches) - 1


DATA = DataRoot(
    settings=EvalConfig(questions=3, exact_match_images=(2, 1, 23), distractor_questions=2, distractor_images=(1, 5))
)
TASKS = {task.name: task for task in (DIGITS_EXACT, DIGITS_DISTRACTORS)}


def samples(text: str | None = None) -> list[Sample]:
    """The same answer to all, or the right ones."""
    return [
        Sample(name, judged(task, question, text or question.gold), [], None)
        for name, task in TASKS.items()
        for question in task.questions(DATA)
    ]


def test_questions_are_spread_over_sets_with_few_images():
    shown = cards_of(samples(), DATA, TASKS, 5)
    assert len(shown) == 5 and all(each.is_right and len(each.images) <= 20 for each in shown)
    assert len({each.title for each in shown}) > 2
    everything = cards_of(samples(), DATA, TASKS, 1000)
    assert len(everything) == 8  # not those with 23 images
    assert len({tuple(map(id, each.images)) for each in shown}) == 5, "sets that ask the same show different questions"


def test_a_wrong_answer_is_shown_as_wrong_whichever_it_is():
    (card,) = cards_of(samples("no"), DATA, TASKS, 1)
    assert (card.is_right, card.answer, card.title, len(card.images)) == (False, "no", "by colour · 1 image", 1)
    (right,) = cards_of(samples(), DATA, TASKS, 1)
    assert right.question == card.question and right.question.startswith("Which digit is ")


def test_options_follow_the_question_on_lines_of_their_own():
    first, *options = cards_of(samples(), DATA, TASKS, 1000)[-1].question.split("\n")
    assert first.startswith("In Image ") and [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]


def test_a_question_whose_image_cannot_be_read_is_not_shown(tmp_path):
    task = counting((1,), tmp_path / "none.png")
    assert (
        cards_of([Sample("counting", judged(task, task.questions(DATA)[0], "1"), [], None)], DATA, {"counting": task}, 3) == []
    )
