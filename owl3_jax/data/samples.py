"""From a record to a sample that fits a row, or the reason why there is none."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.readers.records import BadRecord, Kind, Problem, Record, Records
from owl3_jax.data.skipped import Skipped
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Prepared, Processor, Sample
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.processing.video_sampling import VideoSampling


class Loaded(NamedTuple):
    """A sample, and the source that it is from."""

    source: str
    sample: Sample
    loss_weight: float


class Group(NamedTuple):
    """Samples with all their pixels in one array, which takes less time to send to another process than many."""

    items: tuple[Loaded | Skipped, ...]  # samples without their pixels
    pixel_values: UInt8[np.ndarray, "I S S 3"]  # of all samples


def join(items: Sequence[Loaded | Skipped]) -> Group:
    """A group of samples of one image size."""
    pixels = [item.sample.pixel_values for item in items if isinstance(item, Loaded)]
    joined = np.concatenate(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)
    return Group(tuple(_with_pixels(item, joined[:0]) for item in items), joined)


def split(group: Group) -> list[Loaded | Skipped]:
    """The samples of a group, with views of its array."""
    found, start = [], 0
    for item in group.items:
        stop = start + (len(item.sample.image_starts) if isinstance(item, Loaded) else 0)
        found.append(_with_pixels(item, group.pixel_values[start:stop]))
        start = stop
    return found


def _with_pixels(item: Loaded | Skipped, pixels: UInt8[np.ndarray, "I S S 3"]) -> Loaded | Skipped:
    return item._replace(sample=item.sample._replace(pixel_values=pixels)) if isinstance(item, Loaded) else item


@dataclasses.dataclass(frozen=True)
class Guarded:
    """Records by index; instead of one that cannot be read, why."""

    source: str
    records: Records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record | Skipped:
        try:
            return self.records[index]
        except BadRecord as error:
            return Skipped(self.source, f"record {index} of {self.source}", error.problems[0].kind, str(error))


def for_source(processor: Processor, source: SourceConfig) -> Processor:
    """The processor with the source's own number of video frames."""
    if source.max_frames is None:
        return processor
    sampling = VideoSampling(source.max_frames, processor.video_sampling.rule)
    return dataclasses.replace(processor, video_sampling=sampling)


def load(record: Record | Skipped, config: DataConfig, source: SourceConfig, processor: Processor) -> Loaded | Skipped:
    """The sample of a record, with its images decoded."""
    if isinstance(record, Skipped):
        return record
    try:
        prepared = prepare(record, config, source, processor)
        problems = size_problems(prepared, config)
        if problems and config.too_long == "truncate":
            end_id = processor.tokenizer.stop_ids[-1]
            prepared = prepared.truncated(config.tokens_per_row, config.images_per_row, end_id) or prepared
            problems = size_problems(prepared, config)
        if problems:
            return Skipped(source.label, record.name, *problems[0])
        prepared = prepared.as_draft() if config.jpeg_draft else prepared
        return Loaded(source.label, prepared.read(), source.loss_weight)
    except ValueError as error:
        return Skipped(source.label, record.name, kind_of(error), str(error))


def prepare(record: Record, config: DataConfig, source: SourceConfig, processor: Processor) -> Prepared:
    """A record as tokens, with nothing decoded; whether its images are cropped depends on its name and the seed alone.

    Raises what `Processor.prepare` does.
    """
    crop = None if source.crop is None else zlib.crc32(f"{config.seed} {record.name}".encode()) < source.crop * 2**32
    return processor.prepare(record.messages, record.images, record.videos, crop, training=True)


def size_problems(prepared: Prepared, config: DataConfig) -> list[Problem]:
    """What of a sample does not fit an empty row."""
    tokens, images = len(prepared.input_ids), prepared.num_images
    problems = []
    if tokens > config.tokens_per_row:
        problems.append(Problem("too-long", f"it has {tokens} tokens, a row {config.tokens_per_row} (data.tokens_per_row)"))
    if images > config.images_per_row:
        detail = f"it has {images} images, a row {config.images_per_row} (data.images_per_row)"
        problems.append(Problem("too-many-images", detail))
    return problems


def kind_of(error: ValueError) -> Kind:
    """What an error of processing says about a record."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FileNotFoundError):
            return "missing-file"
        cause = cause.__cause__
    if isinstance(error, UnreadableImage):
        return "unreadable-image"
    return "unreadable-video" if isinstance(error, UnreadableVideo) else "malformed"
