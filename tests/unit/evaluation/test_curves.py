"""The curves as drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from owl3_jax.evaluation.curves import ChanceLine, Curve, draw_curves, save_figure

IMAGES = (1, 2, 7, 50)
CURVES = [
    Curve("solid", "#1f6fb4", IMAGES, (0.9, 0.8, 0.5, 0.1), [(0.8, 1.0), (0.7, 0.9), (0.4, 0.6), (0.0, 0.2)]),
    Curve("dashed", "#d1651b", IMAGES, (1.0, 0.9, 0.6, 0.2), dashed=True),
]
CHANCE = ChanceLine("chance 25 %", IMAGES, (0.25,) * 4)


def draw():
    return draw_curves("A title", "a note", CURVES, [CHANCE], (1, 8))


def test_lines_hold_the_points():
    axes = draw().axes[0]
    solid, dashed, chance = axes.lines
    np.testing.assert_array_equal(solid.get_xydata(), list(zip(IMAGES, CURVES[0].accuracy, strict=True)))
    np.testing.assert_array_equal(dashed.get_ydata(), CURVES[1].accuracy)
    np.testing.assert_array_equal(chance.get_ydata(), CHANCE.accuracy)
    assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"


def test_the_axis_is_logarithmic_and_named_by_the_numbers_of_images():
    axes = draw().axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "7", "50"]


def test_the_trained_range_is_shaded_and_everything_is_labelled():
    axes = draw().axes[0]
    shade = axes.patches[0]
    assert shade.get_x() + shade.get_width() == pytest.approx(8)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["trained on N = 1 to 8", "solid", "dashed"]
    assert {"A title", "a note", "chance 25 %"} <= {text.get_text() for text in axes.texts}


def test_equal_figures_give_equal_files(tmp_path):
    first, second = (save_figure(draw(), tmp_path / name).read_bytes() for name in ("first.png", "second.png"))
    assert first == second
    assert Image.open(io.BytesIO(first)).size > (900, 500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "second.png"]
