"""The sheet of questions, pictures and answers."""

import numpy as np
import pytest
from PIL import Image

from owl3_jax.evaluation.contact_sheet import (
    BOX_HEIGHT,
    BOX_WIDTH,
    RIGHT,
    TILE_PIXELS,
    WRONG,
    Card,
    draw_contact_sheet,
    enlarge,
    tile_layout,
)
from owl3_jax.evaluation.curves import save_figure

QUESTION = "Which digit is red?"


def picture(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 0, 0))


def card(images: int, *, is_right: bool = True, answer: str = "red 7") -> Card:
    pictures = [picture(10 * number) for number in range(images)]
    title, names = f"by colour, {images}", [str(number) for number in range(images)]
    return Card(title, pictures, names, images - 1, QUESTION, answer, "red 7", is_right, {})


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
