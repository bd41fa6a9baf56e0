"""Videos to RGB frames: from a file, its bytes, a folder of images or a list of frames, one frame in memory at a time."""

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from owl3_jax.host.array_cache import ArrayCache
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.images import ImageSource, UnreadableImage, load_image, upright_size
from owl3_jax.processing.location import locate
from owl3_jax.processing.video_file import UnreadableVideo, decode_frames, read_frame_table
from owl3_jax.processing.video_sampling import FrameSampling

FrameCache = ArrayCache[tuple[str, int, int]]  # frames as the model sees them, by their video, index and size (pixels)


@dataclasses.dataclass(frozen=True)
class SampledVideo:
    """A file or folder whose frames are chosen by a rule of its own."""

    source: str | Path | bytes
    sampling: FrameSampling
    is_bare: bool = False  # its frames are images like any others in the text, without marks around them
    frames: FrameCache | None = None  # where those are kept that other prompts ask about too


# `open_video` checks that an array is uint8 [frames, height, width, 3].
VideoSource = str | Path | bytes | Sequence[ImageSource] | Shaped[np.ndarray, "..."] | SampledVideo

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FOLDER_FPS = 1.0  # a folder of images has no frame rate: every one is a second
_FORMS = "give a path or a list of frames: videos=[[frame, frame]]"


@dataclasses.dataclass(frozen=True)
class Video:
    """A video whose frames are chosen but not decoded."""

    indices: Sequence[int]  # of the frames that `frames` gives, at least one; they rise, and may repeat
    frames: Callable[[], Iterator[Image.Image]]  # RGB, from the first one in every call; raises UnreadableVideo on damage
    is_bare: bool = False  # see `SampledVideo`
    cache: FrameCache | None = None
    name: str = ""  # by which `cache` knows it

    @property
    def num_frames(self) -> int:
        """How many frames `frames` gives."""
        return len(self.indices)


def open_video(source: object, sampling: FrameSampling, name: str) -> Video:
    """Chooses the frames of a video. Files are read, but nothing is decoded yet.

    Args:
        source: a `VideoSource`: a video file, its bytes or a `data:` URI of them, whose turns and mirrors are applied (see
            `decode_frames`); a folder, whose image files are the frames in natural order (`2.png` before `10.png`), one a
            second; or frames, each of them what an image may be, in a list, an iterator or an array [frames, height, width, 3].
        sampling: how frames are chosen from a file or folder. All frames of a list are used.
        name: the video's name in errors.

    Raises:
        UnreadableVideo: there is no such file, it holds no video or is truncated, there are no frames, a frame of a list is
            not an image, or the source is a single frame. Damage within a file is found when `frames` reaches it.
    """
    if isinstance(source, SampledVideo):
        opened = open_video(source.source, source.sampling, name)
        return dataclasses.replace(opened, is_bare=source.is_bare, cache=source.frames, name=str(source.source))
    if isinstance(source, str | Path):
        return _open_path(source, sampling, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_file(bytes(source), sampling, name)
    return _open_list(_as_frames(source, name), name)


def _open_path(source: str | Path, sampling: FrameSampling, name: str) -> Video:
    with foreign_errors(UnreadableVideo, f"cannot read video {name}"):
        place = locate(source)
        is_folder = isinstance(place, Path) and place.is_dir()
        is_missing = isinstance(place, Path) and not is_folder and not place.is_file()  # a pipe would never end
    if is_missing:
        missing = f"cannot read video {name}: there is no file or folder {place!s}; check the path"
        raise UnreadableVideo(missing) from FileNotFoundError(place)
    if isinstance(place, Path) and is_folder:
        return _open_folder(place, sampling, name)
    return _open_file(place, sampling, name)


def _open_file(file: Path | bytes, sampling: FrameSampling, name: str) -> Video:
    table = read_frame_table(file, name)
    indices = sampling.indices(table.num_frames, table.fps)
    decode = functools.partial(decode_frames, file, table, sorted(set(indices)), name)
    return Video(indices, lambda: _repeated(indices, decode()))


def _as_frames(source: object, name: str) -> Sequence[object]:
    if isinstance(source, list | tuple):
        return source
    if isinstance(source, Iterator | Sequence):
        return list(source)
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        with foreign_errors(UnreadableVideo, f"cannot read video {name}: its {type(source).__name__} is no array of frames"):
            array = np.asarray(source)
        if array.ndim == 4:
            return list(array)
    raise UnreadableVideo(f"video {name} is a single {type(source).__name__}; {_FORMS}")


def _open_list(frames: Sequence[object], name: str) -> Video:
    if not frames:
        raise UnreadableVideo(f"cannot read video {name}: its list of frames is empty; give at least one")
    for index, frame in enumerate(frames):
        with _naming_frame(index, name) as label:
            upright_size(frame, label)
    return Video(range(len(frames)), lambda: _load_frames(frames, name))


def _load_frames(frames: Sequence[object], name: str) -> Iterator[Image.Image]:
    for index, frame in enumerate(frames):
        with _naming_frame(index, name) as label:
            image = load_image(frame, label)
        yield image


@contextlib.contextmanager
def _naming_frame(index: int, name: str) -> Iterator[str]:
    """The frame's name for `load_image`, whose error becomes one of the video."""
    try:
        yield f"frame {index} of video {name}"
    except UnreadableImage as error:
        raise UnreadableVideo(str(error).replace("cannot read image frame", "cannot read frame", 1)) from error


def _open_folder(folder: Path, sampling: FrameSampling, name: str) -> Video:
    with foreign_errors(UnreadableVideo, f"cannot read video {name}"):
        paths = sorted((path for path in folder.iterdir() if _is_image(path)), key=_natural_order)
    if not paths:
        raise UnreadableVideo(f"cannot read video {name}: folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    indices = sampling.indices(len(paths), _FOLDER_FPS)
    distinct = [paths[index] for index in sorted(set(indices))]
    return Video(indices, lambda: _repeated(indices, _load_images(distinct, name)))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", path.name)  # text and digits alternate, so that equal places compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _load_images(paths: Sequence[Path], name: str) -> Generator[Image.Image, None, None]:
    for path in paths:
        try:
            yield load_image(path, path.name)
        except UnreadableImage as error:
            raise UnreadableVideo(f"cannot read video {name}: {error}; replace that file or take it out") from error


def _repeated(indices: Sequence[int], images: Generator[Image.Image, None, None]) -> Iterator[Image.Image]:
    """Gives each of `images`, one for each distinct index, as often as its index occurs in `indices`, and closes it."""
    with contextlib.closing(images):
        for (_, same), image in zip(itertools.groupby(indices), images, strict=True):
            for _ in same:
                yield image
