"""Videos from a file, a folder and a list: what is taken, in which order, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl3_jax.processing import video
from owl3_jax.processing.video import Video, open_video
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.processing.video_sampling import VideoSampling
from tests.videos import number_image, number_of, write_video

PER_SECOND = VideoSampling()
MIDDLE_8 = VideoSampling(8, "middle")


def numbers(clip: Video) -> list[int]:
    found = [number_of(image) for image in clip.frames()]
    assert len(found) == clip.num_frames
    return found


def write_folder(folder: Path, names: list[str]) -> Path:
    """One image a name; the digits in it are its number."""
    folder.mkdir()
    for name in names:
        Image.fromarray(number_image(int(re.sub(r"\D", "", name)))).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("frames", "sampling", "expected"),
    [
        (45, PER_SECOND, [0, 10, 20, 30, 40]),
        (45, VideoSampling(2), [10, 30]),
        (45, MIDDLE_8, [2, 7, 13, 18, 24, 30, 35, 41]),
        (5, MIDDLE_8, [0, 1, 2, 3, 4, 4, 4, 4]),
    ],
)
def test_a_file_is_sampled(frames, sampling, expected, tmp_path):
    path = write_video(tmp_path / "clip.mp4", frames, b_frames=2)  # ten frames a second
    for source in (path, str(path)):
        assert numbers(open_video(source, sampling, "clip")) == expected


def test_frames_can_be_read_again(tmp_path):
    write_folder(tmp_path / "frames", ["1.png", "2.png"])
    sources = (write_video(tmp_path / "clip.mp4", 15), tmp_path / "frames", [number_image(7)])
    for source in sources:
        clip = open_video(source, MIDDLE_8, "clip")
        assert numbers(clip) == numbers(clip)


def test_a_file_of_any_name_is_a_file(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", 3).rename(tmp_path / "http:clip")
    monkeypatch.chdir(tmp_path)
    assert numbers(open_video(Path("http:clip"), PER_SECOND, "clip")) == [0]


def test_a_folder_is_in_natural_order_and_other_files_are_ignored(tmp_path):
    folder = write_folder(tmp_path / "frames", ["img10.png", "img2.png", "img1.PNG", "img02.webp", "img100.bmp", ".7.png"])
    (folder / "notes.txt").write_text("not a frame")
    (folder / "more").mkdir()
    assert numbers(open_video(folder, PER_SECOND, "clip")) == [1, 2, 2, 10, 100]


@pytest.mark.parametrize(
    ("sampling", "expected"), [(PER_SECOND, [0, 1, 2, 3, 4]), (VideoSampling(2), [1, 3]), (MIDDLE_8, [0, 1, 2, 3, 4, 4, 4, 4])]
)
def test_a_folder_is_sampled_as_one_frame_a_second(sampling, expected, tmp_path):
    folder = write_folder(tmp_path / "frames", [f"{number}.png" for number in range(5)])
    assert numbers(open_video(str(folder), sampling, "clip")) == expected


def test_a_folder_is_loaded_one_image_at_a_time_and_a_repeated_one_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    loaded = []
    load = video.load_image
    monkeypatch.setattr(video, "load_image", lambda path, name: loaded.append(name) or load(path, name))
    frames = open_video(folder, MIDDLE_8, "clip").frames()
    assert loaded == []
    next(frames)
    assert loaded == ["0.png"]
    assert len(list(frames)) == 7
    assert loaded == ["0.png", "1.png", "2.png"]


def test_a_list_is_taken_whole_whatever_the_sampling(tmp_path):
    frames = [number_image(number) for number in range(20)] + [Image.fromarray(number_image(20)).convert("L")]
    clip = open_video(frames, VideoSampling(3), "clip")
    assert numbers(clip) == list(range(21))
    assert {image.mode for image in clip.frames()} == {"RGB"}


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (
            np.zeros((4, 5, 3), np.float32),
            r"cannot read frame 1 of video clip: its array is float32 .*4, 5, 3",
        ),
        (np.zeros((3, 4, 5), np.uint8), r"cannot read frame 1 of video clip: .*"),
        (np.zeros((4, 5), np.uint8), r"cannot read frame 1 of video clip: .*"),
        (np.zeros((0, 5, 3), np.uint8), r"cannot read frame 1 of video clip: .*"),
    ],
)
def test_arrays_of_another_form_are_named(frame, complaint):
    with pytest.raises(UnreadableVideo, match=complaint):
        open_video([number_image(0), frame], PER_SECOND, "clip")


def test_sources_without_frames_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableVideo, match="cannot read video clip: its list of frames is empty; give at least one"):
        open_video([], PER_SECOND, "clip")
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: folder .*empty has no images \(\.bmp"):
        open_video(tmp_path / "empty", PER_SECOND, "clip")
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: there is no file or folder .*nowhere\.mp4; check"):
        open_video(tmp_path / "nowhere.mp4", PER_SECOND, "clip")


def test_a_damaged_image_of_a_folder_is_named(tmp_path):
    folder = write_folder(tmp_path / "frames", ["0.png"])
    (folder / "1.png").write_bytes(b"no image")
    frames = open_video(folder, PER_SECOND, "clip").frames()
    assert number_of(next(frames)) == 0
    with pytest.raises(UnreadableVideo, match=r"cannot read video clip: cannot read image 1\.png: .*; replace that file or"):
        next(frames)
