"""Videos from a file, a folder and a list: what is taken, in which order, and what is refused."""

import base64
import re
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from owl3_jax.processing import video
from owl3_jax.processing.images import load_image
from owl3_jax.processing.video import Video, open_video
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.processing.video_sampling import VideoSampling
from tests.videos import B_FRAMES, HEIGHT, WIDTH, number_image, number_of, write_video

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


def test_a_list_holds_whatever_an_image_may_be(tmp_path):
    Image.fromarray(number_image(2)).save(tmp_path / "2.png")
    encoded = (tmp_path / "2.png").read_bytes()
    frames = [number_image(0), Image.fromarray(number_image(1)), tmp_path / "2.png", encoded, _Tensor(number_image(4))]
    assert numbers(open_video(frames, PER_SECOND, "clip")) == [0, 1, 2, 2, 4]


class _Tensor:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._array


@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_of_a_list_are_turned_like_images(orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(number_image(5)).save(tmp_path / "5.png", exif=exif)
    with Image.open(tmp_path / "5.png") as frame:
        [shown] = open_video([frame], PER_SECOND, "clip").frames()
    assert shown.tobytes() == load_image(tmp_path / "5.png", "5").tobytes()
    assert shown.size == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))


@pytest.mark.parametrize("kind", [list, tuple, iter, deque, np.stack, lambda frames: _Tensor(np.stack(frames))])
def test_frames_come_in_any_sequence(kind):
    clip = open_video(kind([number_image(number) for number in range(3)]), VideoSampling(2), "clip")
    assert numbers(clip) == [0, 1, 2]
    assert numbers(clip) == [0, 1, 2]


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (np.zeros((4, 5, 3), np.float32), r"its array is float32 \(4, 5, 3\); it must be uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"its array is uint8 \(3, 4, 5\)"),
        (np.zeros((4, 5), np.uint8), r"its array is uint8 \(4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), "it has 5 x 0 pixels"),
        (Image.new("RGB", (0, 5)), "it has 0 x 5 pixels"),
        (None, "it is None"),
        ({}, "it is a dict"),
        (b"no image", "Pillow knows no such format"),
        ("", "its path is empty"),
        ("missing.png", "No such file"),
    ],
)
def test_frames_that_are_no_images_are_named(frame, complaint):
    with pytest.raises(UnreadableVideo, match=f"cannot read frame 1 of video clip: {complaint}"):
        open_video([number_image(0), frame], PER_SECOND, "clip")


def test_a_frame_that_is_cut_off_or_closed_is_named(tmp_path):
    Image.fromarray(number_image(3)).save(tmp_path / "3.png")
    encoded = (tmp_path / "3.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(encoded[: len(encoded) // 2])
    closed = Image.open(tmp_path / "3.png")
    closed.close()
    for frame in (Image.open(tmp_path / "cut.png"), closed):
        with pytest.raises(UnreadableVideo, match=r"cannot read frame 1 of video clip: .+"):
            list(open_video([number_image(0), frame], PER_SECOND, "clip").frames())


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (number_image(0), "video clip is a single ndarray; give a path or a list of frames"),
        (Image.fromarray(number_image(0)), "video clip is a single Image; give a path or a list of frames"),
        (None, "video clip is a single NoneType; give a path or a list of frames"),
        (7, "video clip is a single int; give a path or a list of frames"),
        ({"frames": []}, "video clip is a single dict; give a path or a list of frames"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"cannot read frame 0 of video clip: its array is uint8 \(3, 4, 5\)"),
        (np.zeros((0, 4, 5, 3), np.uint8), "cannot read video clip: its list of frames is empty"),
        ("", "cannot read video clip: its path is empty"),
        ("https://example.org/clip.mp4", "cannot read video clip: files on the web are not fetched; download it"),
        ("data:video/mp4;base64,####", "cannot read video clip: its data: URI is not valid base64"),
        ("data:video/mp4;base64,AAAA", "cannot read video clip: .+; if a video player shows it"),
        (b"", "cannot read video clip: .+; if a video player shows it"),
        ("a" * 5000, "cannot read video clip: File name too long"),
        ("a\0b", "cannot read video clip: "),
    ],
)
def test_sources_of_other_kinds_are_named(source, complaint):
    with pytest.raises(UnreadableVideo, match=complaint) as caught:
        open_video(source, PER_SECOND, "clip")
    assert len(str(caught.value)) < 500


def test_a_video_may_be_its_bytes_or_a_uri(tmp_path):
    path = write_video(tmp_path / "a clip.mp4", 25, b_frames=2)
    encoded = path.read_bytes()
    data = "data:video/mp4;base64," + base64.b64encode(encoded).decode()
    for source in (encoded, bytearray(encoded), memoryview(encoded), data, path.as_uri()):
        assert numbers(open_video(source, PER_SECOND, "clip")) == [0, 10, 20]


def test_a_video_whose_rate_varies_is_seen_as_a_whole(tmp_path):
    path = write_video(tmp_path / "slides.mkv", 40, durations=(1, 999))  # two frames a second; the header says 1000
    assert numbers(open_video(path, VideoSampling(32), "clip")) == list(range(0, 40, 2))


@pytest.mark.parametrize(("fps", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (5, [0, 5, 10, 15])])
def test_an_avi_with_b_frames_is_sampled_by_frames(fps, expected, tmp_path):
    path = write_video(tmp_path / "clip.avi", expected[-1] + 1, b_frames=3, durations=(1000 // fps,), options=B_FRAMES)
    assert numbers(open_video(path, PER_SECOND, "clip")) == expected


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
