"""All that is wrong with one record, where training stops at the first problem; and how much of a row it takes."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.readers.records import BadRecord, Problem, Record, Records
from owl3_jax.data.samples import kind_of, prepare, size_problems
from owl3_jax.processing.images import ImageSource, load_image
from owl3_jax.processing.location import display_name, locate
from owl3_jax.processing.processor import Prepared, Processor
from owl3_jax.processing.video import VideoSource, open_video
from owl3_jax.processing.video_sampling import VideoSampling

_BLANK = Image.new("RGB", (8, 8))  # stands for an image that cannot be read, so that the rest of its record can be checked
_BLOCK_BYTES = 2**20

_Medium = TypeVar("_Medium", ImageSource, VideoSource)


class Checked(NamedTuple):
    """What was found out about one record."""

    problems: list[Problem]
    tokens: int = 0  # of the whole conversation; 0 where there is none
    images: int = 0  # crops and video frames too
    row_tokens: int = 0  # of what training uses: less when it is truncated, 0 when it is skipped
    row_images: int = 0
    target_tokens: int = 0  # with loss, of what training uses
    digest: str = ""  # of its messages and media; empty where there is no conversation
    image_digests: tuple[str, ...] = ()  # of each image as it is stored


@dataclasses.dataclass(frozen=True)
class Checker:
    """Checks the records of one source."""

    records: Records
    config: DataConfig
    source: SourceConfig
    processor: Processor  # with the source's own settings (`owl3_jax.data.samples.for_source`)

    def __call__(self, index: int) -> Checked:
        """Reads a record and all its media."""
        try:
            record = self.records[index]
        except BadRecord as error:
            media = _Media(error.images, error.videos, self.processor.video_sampling)
            return Checked([*error.problems, *media.problems])
        media = _Media(record.images, record.videos, self.processor.video_sampling)
        whole = record._replace(images=media.readable_images, videos=media.readable_videos)
        digest = _digest([json.dumps(record.messages, sort_keys=True).encode(), *map(_encoded_name, media.digests)])
        try:
            prepared = prepare(whole, self.config, self.source, self.processor)
        except ValueError as error:
            return Checked([*media.problems, Problem(kind_of(error), str(error))], digest=digest)
        problems = [*media.problems, *size_problems(prepared, self.config)]
        used = self._used(prepared, problems)
        return Checked(
            problems,
            tokens=len(prepared.input_ids),
            images=prepared.num_images,
            row_tokens=len(used.input_ids) if used else 0,
            row_images=used.num_images if used else 0,
            target_tokens=int(used.labels.sum()) if used else 0,
            digest=digest,
            image_digests=tuple(media.digests[: len(record.images)]),
        )

    def prepared(self, record: Record) -> Prepared:
        """A record as the model sees it, with a blank image for each that cannot be read."""
        media = _Media(record.images, record.videos, self.processor.video_sampling)
        whole = record._replace(images=media.readable_images, videos=media.readable_videos)
        return prepare(whole, self.config, self.source, self.processor)

    def _used(self, prepared: Prepared, problems: Sequence[Problem]) -> Prepared | None:
        """What training makes of a record; None when it skips it."""
        if not problems:
            return prepared
        if self.config.too_long != "truncate" or not {problem.kind for problem in problems} <= {"too-long", "too-many-images"}:
            return None
        end_id = self.processor.tokenizer.stop_ids[-1]
        return prepared.truncated(self.config.tokens_per_row, self.config.images_per_row, end_id)


class _Media:
    """The images and videos of a record, each read once; blank ones stand for those that cannot be read."""

    def __init__(self, images: Sequence[ImageSource], videos: Sequence[VideoSource], sampling: VideoSampling) -> None:
        self.problems: list[Problem] = []
        self.digests: list[str] = []  # of the images, then of the videos
        self.readable_images: list[ImageSource] = []
        self.readable_videos: list[VideoSource] = []
        for index, image in enumerate(images):
            is_readable = self._read(_read_image, image, display_name(index, image))
            self.readable_images.append(image if is_readable else _BLANK)
        read_video = functools.partial(_read_video, sampling)
        for index, video in enumerate(videos):
            is_readable = self._read(read_video, video, display_name(index, video))
            self.readable_videos.append(video if is_readable else [_BLANK])

    def _read(self, read: Callable[[_Medium, str], str], medium: _Medium, name: str) -> bool:
        try:
            self.digests.append(read(medium, name))
        except ValueError as error:
            self.problems.append(Problem(kind_of(error), str(error)))
            self.digests.append(name)
            return False
        return True


def _read_image(source: ImageSource, name: str) -> str:
    """Decodes an image; returns the digest of what is stored. Raises UnreadableImage."""
    encoded = _encoded(source)
    if encoded is None:
        return _digest([load_image(source, name).tobytes()])
    # A draft of a JPEG file is read to its end as the whole is, without computing pixels: the same errors in half the time.
    load_image(encoded, name, draft=(1, 1))
    return _digest([encoded])


def _encoded(source: object) -> bytes | None:
    """What is stored of an image; None for one that is decoded already, or that cannot be read."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        return None
    try:
        place = locate(source)
        return place if isinstance(place, bytes) else place.read_bytes()
    except (OSError, ValueError):  # `load_image` says why
        return None


def _read_video(sampling: VideoSampling, source: VideoSource, name: str) -> str:
    """Decodes the frames of a video that a sample has; returns the digest of what is stored. Raises UnreadableVideo."""
    for _ in open_video(source, sampling, name).frames():
        pass
    return _digest(_stored(source))


def _stored(source: object) -> Iterator[bytes]:
    """The content of a video, block by block."""
    if isinstance(source, str | Path):
        place = locate(source)
        if isinstance(place, bytes):
            yield place
        elif place.is_dir():
            for path in sorted(place.iterdir()):
                yield from _stored(path)
        else:
            with place.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    yield block
    elif isinstance(source, Sequence) and not isinstance(source, bytes):
        for frame in source:
            yield from _stored(frame)
    else:
        yield source if isinstance(source, bytes) else np.asarray(source).tobytes()


def _encoded_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # of a file that cannot be read, which may be anything


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
