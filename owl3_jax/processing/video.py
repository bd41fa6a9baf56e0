"""Videos to RGB frames: from a file, a folder of images, or a list of frames, one frame in memory at a time."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from owl3_jax.processing.images import UnreadableImage, load_image, to_rgb
from owl3_jax.processing.video_file import UnreadableVideo, decode_frames, read_frame_table
from owl3_jax.processing.video_sampling import VideoSampling

Frame = Image.Image | Shaped[np.ndarray, "..."]  # `open_video` checks that an array is uint8 [height, width, 3]
VideoSource = str | Path | Sequence[Frame]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FOLDER_FPS = 1.0  # a folder of images has no frame rate: every one is a second


@dataclasses.dataclass(frozen=True)
class Video:
    """A video whose frames are chosen but not decoded."""

    num_frames: int  # frames that `frames` gives, at least one
    frames: Callable[[], Iterator[Image.Image]]  # RGB, from the first one in every call; raises UnreadableVideo on damage


def open_video(source: VideoSource, sampling: VideoSampling, name: str) -> Video:
    """Chooses the frames of a video. Files are read, but nothing is decoded yet.

    Args:
        source: a video file, whose rotation is applied (see `decode_frames`); or a folder, whose image files are the frames in
            natural order (`2.png` before `10.png`), one a second; or a list of frames, PIL images or uint8 [H, W, 3].
        sampling: how frames are chosen from a file or folder. All frames of a list are used.
        name: the video's name in errors.

    Raises:
        UnreadableVideo: there is no such file, it holds no video or is truncated, there are no frames, a frame of a list is
            not an image, or the source is a single frame. Damage within a file is found when `frames` reaches it.
    """
    if not isinstance(source, str | Path):
        return _open_list(source, name)
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, sampling, name)
    if not path.is_file():
        raise UnreadableVideo(f"cannot read video {name}: there is no file or folder {path}; check the path")
    table = read_frame_table(path, name)
    indices = sampling.indices(table.num_frames, table.fps)
    decode = functools.partial(decode_frames, path, table, sorted(set(indices)), name)
    return Video(len(indices), lambda: _repeated(indices, decode()))


def _open_list(frames: Sequence[Frame], name: str) -> Video:
    if not isinstance(frames, list | tuple):
        kind = type(frames).__name__
        raise UnreadableVideo(f"video {name} is a single {kind}; give a path or a list of frames: videos=[[frame, frame]]")
    if not len(frames):
        raise UnreadableVideo(f"cannot read video {name}: its list of frames is empty; give at least one")
    for index, frame in enumerate(frames):
        _check_frame(frame, f"frame {index} of video {name}")
    return Video(len(frames), lambda: map(_frame_image, frames))


def _check_frame(frame: Frame, name: str) -> None:
    if isinstance(frame, Image.Image):
        return
    if not isinstance(frame, np.ndarray):
        raise UnreadableVideo(f"{name} is a {type(frame).__name__}; it has to be a PIL image or an array")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise UnreadableVideo(f"{name} is {frame.dtype} {list(frame.shape)}; an array has to be uint8 [H, W, 3]")


def _frame_image(frame: Frame) -> Image.Image:
    return Image.fromarray(frame) if isinstance(frame, np.ndarray) else to_rgb(frame)


def _open_folder(folder: Path, sampling: VideoSampling, name: str) -> Video:
    paths = sorted((path for path in folder.iterdir() if _is_image(path)), key=_natural_order)
    if not paths:
        raise UnreadableVideo(f"cannot read video {name}: folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    indices = sampling.indices(len(paths), _FOLDER_FPS)
    distinct = [paths[index] for index in sorted(set(indices))]
    return Video(len(indices), lambda: _repeated(indices, _load_images(distinct, name)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", path.name)  # text and digits alternate, so that equal places compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _load_images(paths: Sequence[Path], name: str) -> Iterator[Image.Image]:
    for path in paths:
        try:
            yield load_image(path, path.name)
        except UnreadableImage as error:
            raise UnreadableVideo(f"cannot read video {name}: {error}; replace that file or take it out") from error


def _repeated(indices: Sequence[int], images: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """Gives each of `images`, one for each distinct index, as often as its index occurs in `indices`."""
    for (_, same), image in zip(itertools.groupby(indices), images, strict=True):
        for _ in same:
            yield image
