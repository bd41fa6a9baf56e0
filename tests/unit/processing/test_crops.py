"""Grids and crops: the official examples, every near tie, and exact arithmetic beside float32."""

import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.processing import crops
from owl3_jax.processing.crops import GRIDS, Grid, choose_grid, grid_scores, views
from owl3_jax.processing.images import squash
from tests.tolerances import GRID_SCORE

ROOT = Path(__file__).parents[3]

# width, height; at S = 384 the grid, its score, the runner-up and its score; at S = 378 the grid and its score.
EXAMPLES = [
    (500, 500, (2, 2), 100.4239, (2, 3), 66.9492, (2, 2), 100.4374),
    (384, 384, (2, 2), 100.2500, (2, 3), 66.8333, (2, 2), 100.2580),
    (50, 50, (2, 2), 100.0042, (2, 3), 66.6695, (2, 2), 100.0044),
    (640, 480, (2, 3), 89.2361, (2, 2), 75.5208, (2, 3), 89.2995),
    (800, 600, (2, 3), 89.4314, (2, 2), 75.7566, (2, 3), 89.5011),
    (1200, 800, (2, 3), 100.9216, (2, 2), 67.2811, (2, 3), 100.8930),
    (1920, 1080, (2, 3), 84.8017, (1, 3), 59.4726, (2, 3), 84.6727),
    (1080, 1920, (3, 2), 84.8223, (3, 1), 59.4147, (3, 2), 84.7884),
    (300, 1200, (4, 1), 100.6104, (3, 1), 75.7566, (4, 1), 100.6299),
    (1000, 250, (1, 4), 100.4239, (1, 3), 75.5651, (1, 4), 100.4374),
    (2000, 600, (1, 3), 90.2124, (1, 4), 83.9698, (1, 3), 90.3043),
    (1000, 817, (2, 3), 82.4378, (2, 2), 82.3626, (2, 3), 82.4647),
    (1000, 818, (2, 2), 82.4919, (2, 3), 82.3503, (2, 2), 82.4447),
    (800, 980, (2, 2), 82.4545, (3, 2), 82.4188, (3, 2), 82.4807),
    (1100, 900, (2, 2), 82.3666, (2, 3), 82.3489, (2, 3), 82.3721),
    (4000, 1, (1, 4), 0.0026, (1, 3), 0.0026, (1, 4), 0.0026),
]
# Of images 1000 wide at S = 384: the first and last height of each grid.
RANGES = [
    (150, 289, (1, 4)), (290, 472, (1, 3)), (473, 817, (2, 3)), (818, 1223, (2, 2)),
    (1224, 2124, (3, 2)), (2125, 3463, (3, 1)), (3464, 4000, (4, 1)),
]  # fmt: skip
# Sums of the uint8 views of `gradient`: the crops, then the whole.
VIEW_SUMS = {
    (100, 60, 384): [59629371, 53485390, 57146071, 53800284, 59451288, 53899949, 56235423],
    (100, 60, 378): [57781764, 51827077, 55374071, 52133408, 57607780, 52228640, 54496010],
    (1000, 700, 384): [56399145, 56399498, 56406010, 56403901, 56404566, 56403237, 56402632],
    (1000, 700, 378): [54650294, 54650593, 54658458, 54655081, 54655687, 54655293, 54660686],
}
SIDES = st.one_of(st.integers(1, 60), st.integers(1, 9000))


def gradient(width: int, height: int) -> Image.Image:
    """pixel[y, x, c] = (3x + 5y + 70c) mod 256."""
    y, x, c = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    return Image.fromarray(((3 * x + 5 * y + 70 * c) % 256).astype(np.uint8))


@pytest.mark.parametrize(("width", "height", "grid", "score", "second", "second_score", "grid_378", "score_378"), EXAMPLES)
def test_official_examples(width, height, grid, score, second, second_score, grid_378, score_378):
    scores = dict(zip(GRIDS, grid_scores(width, height, 384).tolist(), strict=True))
    assert choose_grid(width, height, 384) == grid
    assert (f"{scores[Grid(*grid)]:.4f}", f"{scores[Grid(*second)]:.4f}") == (f"{score:.4f}", f"{second_score:.4f}")
    assert sorted(scores.values())[-2] == scores[Grid(*second)]
    assert choose_grid(width, height, 378) == grid_378
    assert f"{grid_scores(width, height, 378).max():.4f}" == f"{score_378:.4f}"


def test_official_ranges_of_heights():
    for first, last, grid in RANGES:
        assert {choose_grid(1000, height, 384) for height in range(first, last + 1)} == {grid}


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def exact_scores(width: int, height: int, size: int) -> list[Fraction]:
    """The scores in exact fractions; only the scaled height is rounded as the official code rounds it."""
    scores = []
    for rows, columns in GRIDS:
        w, h = columns * size, rows * size
        scaled = int(float32(float32(height / width) * w))
        common = min(w, width) * min(h, height)
        scores.append(100 * Fraction(min(h, scaled), max(h, scaled)) + Fraction(common, w * h + width * height - common))
    return scores


@settings(max_examples=300, deadline=None)
@given(width=SIDES, height=SIDES, size=st.sampled_from([28, 56, 378, 384]))
def test_scores_and_choice_are_those_of_exact_arithmetic(width, height, size):
    exact = exact_scores(width, height, size)
    scores = grid_scores(width, height, size)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [float(score) for score in exact], rtol=0, atol=GRID_SCORE)
    chosen = GRIDS.index(choose_grid(width, height, size))
    assert chosen == scores.tolist().index(max(scores))  # the first of equals
    assert exact[chosen] >= max(exact) - 2 * GRID_SCORE


@pytest.mark.parametrize("grids", [(Grid(1, 3), Grid(3, 1)), (Grid(3, 1), Grid(1, 3))])
def test_of_equal_scores_the_first_grid_is_taken(monkeypatch, grids):
    monkeypatch.setattr(crops, "GRIDS", grids)
    first, second = grid_scores(500, 500, 384)
    assert first == second
    assert choose_grid(500, 500, 384) == grids[0]


@pytest.mark.parametrize(("width", "height", "size"), VIEW_SUMS)
def test_official_views(width, height, size):
    all_views = list(views(gradient(width, height), choose_grid(width, height, size), size))
    assert {(view.shape, view.dtype) for view in all_views} == {((size, size, 3), np.dtype(np.uint8))}
    assert [int(view.sum()) for view in all_views] == VIEW_SUMS[width, height, size]


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 13), grid=st.sampled_from(GRIDS))
def test_crops_laid_side_by_side_are_the_stretched_image(width, height, size, grid):
    image = gradient(width, height)
    *squares, whole = views(image, grid, size)
    rows = [np.concatenate(squares[row * grid.columns :][: grid.columns], axis=1) for row in range(grid.rows)]
    stretched = image.resize((grid.columns * size, grid.rows * size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.concatenate(rows), np.asarray(stretched))
    np.testing.assert_array_equal(whole, squash(image, size))


def test_without_a_grid_there_is_the_whole_image_alone():
    (whole,) = views(gradient(17, 5), None, 11)
    np.testing.assert_array_equal(whole, squash(gradient(17, 5), 11))


def test_the_examples_in_the_docs_are_the_commands_output():
    text = (ROOT / "docs/processing.md").read_text()
    ((code, shown),) = re.findall(r"^    python -c '(.*?)'\n\n```\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    code = code.replace("\n    ", "\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == shown
