"""From a record to a sample that fits a row, or the reason why there is none."""

import dataclasses
import zlib
from typing import NamedTuple

from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.readers.records import BadRecord, Kind, Problem, Record, Records
from owl3_jax.data.skipped import Skipped
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Prepared, Processor, Sample
from owl3_jax.processing.video_file import UnreadableVideo
from owl3_jax.processing.video_sampling import VideoSampling


class Candidate(NamedTuple):
    """A sample that fits a row, and is not decoded yet."""

    source: str
    record: str  # its name
    prepared: Prepared
    loss_weight: float

    @property
    def size(self) -> tuple[int, int]:
        """Its tokens and images."""
        return len(self.prepared.input_ids), self.prepared.num_images

    def read(self) -> Sample:
        """The sample, decoded. Raises ValueError for damaged images and videos."""
        return self.prepared.read()


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


def consider(record: Record | Skipped, config: DataConfig, source: SourceConfig, processor: Processor) -> Candidate | Skipped:
    """What becomes of a record; its images are not decoded."""
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
        return Candidate(source.label, record.name, prepared, source.loss_weight)
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
