"""Reads one file in one of the ways in which users give files, and says how that went."""

import dataclasses
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from media_fuzz.seeds import Seed
from owl3_jax.processing.images import UnreadableImage, load_image, upright_size
from owl3_jax.processing.video import open_video
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.processing.video_sampling import VideoSampling

Result = Literal["read", "refused", "escaped", "bad message", "hung", "crashed"]

LONGEST_MESSAGE = 500  # characters
_SAMPLING = VideoSampling(max_frames=4)
_NAME = "damaged file 7"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How reading a file went."""

    result: Result
    detail: str = ""  # the message, or the traceback

    @property
    def is_fault(self) -> bool:
        """Whether it is something else than a picture or one of the two errors."""
        return self.result not in ("read", "refused")


Trial = Callable[[Seed, int], Outcome]


def try_file(file: Seed, way: int) -> Outcome:
    """Reads `file` in one of several ways, which take turns as `way` counts up.

    Images are given as bytes, as a path, as a frame of a list, and as the only file of a folder; videos as bytes and as a path.
    """
    try:
        if file.kind == "image":
            _IMAGE_WAYS[way % len(_IMAGE_WAYS)](file)
        else:
            _VIDEO_WAYS[way % len(_VIDEO_WAYS)](file)
    except (UnreadableImage, UnreadableVideo) as error:
        return _judge(str(error))
    except Exception:  # what this tool looks for
        return Outcome("escaped", traceback.format_exc())
    return Outcome("read")


def _judge(message: str) -> Outcome:
    faults = [
        fault
        for fault, is_so in {
            "does not name the file": _NAME not in message,
            f"has more than {LONGEST_MESSAGE} characters": len(message) > LONGEST_MESSAGE,
            "has several lines": "\n" in message,
        }.items()
        if is_so
    ]
    return Outcome("bad message", f"it {' and '.join(faults)}: {message[:1000]!r}") if faults else Outcome("refused", message)


def _image_as_bytes(file: Seed) -> None:
    upright_size(file.content, _NAME)
    load_image(file.content, _NAME)


def _image_as_path(file: Seed) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"image{file.suffix}")
        path.write_bytes(file.content)
        upright_size(path, _NAME)
        load_image(path, _NAME)


def _image_as_frame(file: Seed) -> None:
    _read_video([file.content])


def _image_in_folder(file: Seed) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "1.png").write_bytes(file.content)
        _read_video(folder)


def _video_as_bytes(file: Seed) -> None:
    _read_video(file.content)


def _video_as_path(file: Seed) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"video{file.suffix}")
        path.write_bytes(file.content)
        _read_video(path)


def _read_video(source: object) -> None:
    for _ in open_video(source, _SAMPLING, _NAME).frames():
        pass


_IMAGE_WAYS = (_image_as_bytes, _image_as_path, _image_as_frame, _image_in_folder)
_VIDEO_WAYS = (_video_as_bytes, _video_as_path)
