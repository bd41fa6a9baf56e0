"""What crops and videos become in the text, and their views."""

import numpy as np
import pytest
from PIL import Image

from owl3_jax.processing.crops import GRIDS, Grid
from owl3_jax.processing.images import squash
from owl3_jax.processing.media import Clip, Picture
from owl3_jax.processing.video import open_video
from owl3_jax.processing.video_sampling import VideoSampling

IMAGE = Image.new("RGB", (7, 5), (10, 20, 30))
WORDS_2_3 = (
    "Cut to 2 rows 3 columns with a global view\n"
    "subimg(0,0)<|image|> subimg(0,1)<|image|> subimg(0,2)<|image|>\n"
    "subimg(1,0)<|image|> subimg(1,1)<|image|> subimg(1,2)<|image|>\n"
    "global_view<|image|>"
)
MARKERS_2_3 = "<|start_cut|>2*3\n<|image|> <|image|> <|image|>\n<|image|> <|image|> <|image|>\n<|image|><|end_cut|>"


def text_of(medium: Picture | Clip, style: str) -> str:
    return "".join(chunk.text for chunk in medium.chunks(style))


def clip(frames: int) -> Clip:
    colours = [Image.new("RGB", (4, 3), (index, 0, 0)) for index in range(frames)]
    return Clip(open_video(colours, VideoSampling(), "0"))


@pytest.mark.parametrize(("style", "text"), [("words", WORDS_2_3), ("markers", MARKERS_2_3)])
def test_crops_in_text(style, text):
    assert text_of(Picture(IMAGE, "0", Grid(2, 3)), style) == text


def test_plurals_stay_for_single_rows_and_columns():
    assert text_of(Picture(IMAGE, "0", Grid(3, 1)), "words").startswith("Cut to 3 rows 1 columns")
    assert text_of(Picture(IMAGE, "0", Grid(1, 4)), "words").startswith("Cut to 1 rows 4 columns")


@pytest.mark.parametrize("style", ["words", "markers"])
def test_a_whole_image_is_its_placeholder(style):
    assert text_of(Picture(IMAGE, "0"), style) == "<|image|>"


@pytest.mark.parametrize("style", ["words", "markers"])
@pytest.mark.parametrize("medium", [*(Picture(IMAGE, "0", grid) for grid in (None, *GRIDS)), clip(1), clip(5)])
def test_one_image_chunk_per_view(medium, style):
    views = list(medium.views(6))
    assert {(view.shape, view.dtype) for view in views} == {((6, 6, 3), np.dtype(np.uint8))}
    assert [chunk.kind for chunk in medium.chunks(style)].count("image") == len(views)


def test_frames_are_bare_or_within_markers():
    assert text_of(clip(3), "words") == "<|image|><|image|><|image|>"
    assert text_of(clip(3), "markers") == "<|start_video_frame|><|image|><|image|><|image|><|end_video_frame|>"


def test_views_of_a_video_are_its_frames_in_order_and_again():
    medium = clip(3)
    for _ in range(2):
        assert [view[0, 0, 0] for view in medium.views(6)] == [0, 1, 2]


def test_views_of_a_picture_take_any_source(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    sources = [IMAGE, np.asarray(IMAGE), tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()]
    for source in sources:
        (view,) = Picture(source, "0").views(6)
        np.testing.assert_array_equal(view, squash(IMAGE, 6))
