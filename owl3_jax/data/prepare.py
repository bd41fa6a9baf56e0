"""Records of any sources as ArrayRecord files that TFDS and grain read fast, from any place: `owl3 data prepare`.

    DIR/owl3-train.array_record-00000-of-00128 ...   records in the form of `readers.stored`
    DIR/dataset_info.json, features.json             written last: with them the folder is complete
    DIR/skipped.jsonl                                records that could not be stored, and why

A shard holds a fixed part of the records, so that the same sources give the same bytes whoever writes which shard, and when. A
preparation that was stopped keeps its complete shards.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, JpegImagePlugin

from owl3_jax.config import ConfigError, JsonTree
from owl3_jax.data.readers.records import BadRecord, Problem, Record, Records
from owl3_jax.host import storage
from owl3_jax.host.files import write_text
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.host.workers import map_in_processes
from owl3_jax.processing.image_modes import to_rgb
from owl3_jax.processing.location import display_name, locate

NAME, SPLIT = "owl3", "train"
SKIPPED = "skipped.jsonl"

_FILES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_INFO, _PLAN = "dataset_info.json", ".unfinished.json"
_SHRUNK_MODES = ("L", "LA", "RGB", "RGBA")  # others are shrunk as the model sees them: Pillow would choose pixels of palettes
_ENCODED = tfds.features.Scalar(np.object_)
_FEATURES = tfds.features.FeaturesDict(
    {
        "messages": _ENCODED,
        "images": tfds.features.Sequence(_ENCODED),
        "videos": tfds.features.Sequence(_ENCODED),
        "frame_counts": tfds.features.Sequence(np.int64),
        "metadata": _ENCODED,
    }
)
_SERIALIZER = tfds.core.example_serializer.ExampleSerializer(_FEATURES.get_serialized_info())


@dataclasses.dataclass(frozen=True)
class Part:
    """The shards that one of several machines writes: each `count`th from `index` on."""

    index: int
    count: int

    def shards(self, shards: int) -> range:
        """Their numbers, of so many in all."""
        return range(self.index, shards, self.count)

    def num_records(self, records: int, shards: int) -> int:
        """How many of so many records are in its shards, those that cannot be stored included (see `ShardWriter`)."""
        return sum(len(range(shard, records, shards)) for shard in self.shards(shards))


class Written(NamedTuple):
    """What became of the records of a shard."""

    records: int
    num_bytes: int
    skipped: list[list[str]]  # name, kind and detail of each record that was left out


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes shard number n of several. It can be sent to other processes."""

    sources: Sequence[Records]
    folder: Path
    shards: int
    longest: int | None  # pixels of an image's longer side, at most; larger ones are shrunk

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{NAME}-{SPLIT}.array_record-{shard:05}-of-{self.shards:05}"

    def done(self, shard: int) -> Written | None:
        """What an earlier preparation wrote, if it has finished this shard."""
        note = self._note(shard)
        return Written(**json.loads(note.read_text())) if note.exists() else None

    def __call__(self, shard: int) -> Written:
        """Writes the file under another name, renames it, and notes that it is complete."""
        path, skipped, records, size = self.path(shard), [], 0, 0
        unfinished = path.with_name(f".{path.name}")
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        try:
            for name, source, index in self._part(shard):
                try:
                    example = self._serialize(source[index])
                except BadRecord as error:
                    skipped.append([name, error.problems[0].kind, str(error)])
                    continue
                writer.write(example)
                records, size = records + 1, size + len(example)
        finally:
            writer.close()
        unfinished.replace(path)
        written = Written(records, size, skipped)
        write_text(self._note(shard), json.dumps(written._asdict()))
        return written

    def _note(self, shard: int) -> Path:
        return self.folder / f".{shard:05}.json"

    def _part(self, shard: int) -> Iterator[tuple[str, Records, int]]:
        """Records of all sources at a distance of `shards`: shards are alike, whatever the order of a source means."""
        numbered = 0
        for number, source in enumerate(self.sources):
            first = (shard - numbered) % self.shards
            for index in range(first, len(source), self.shards):
                yield f"record {index} of source {number}", source, index
            numbered += len(source)

    def _serialize(self, record: Record) -> bytes:
        images = [self._image(source, index) for index, source in enumerate(record.images)]
        videos, counts = [], []
        for index, video in enumerate(record.videos):
            frames = list(video) if isinstance(video, list | tuple) else []
            read = [self._image(frame, at) for at, frame in enumerate(frames)] or [_read(video, f"video {index}")]
            videos += read
            counts.append(len(frames))
        example = {
            "messages": _as_json(record.messages),
            "images": images,
            "videos": videos,
            "frame_counts": counts,
            "metadata": _as_json(record.metadata),
        }
        # Without `deterministic` the order of the features would be another in each process.
        encoded = _SERIALIZER.get_tf_example(_FEATURES.encode_example(example))
        return bytes(encoded.SerializeToString(deterministic=True))

    def _image(self, source: object, index: int) -> bytes:
        content = _read(source, f"image {display_name(index, source)}")
        if self.longest is None:
            return content
        try:
            return shrink(content, self.longest, f"image {display_name(index, source)}")
        except ValueError as error:
            raise BadRecord(Problem("unreadable-image", str(error))) from error


def prepare(
    sources: Sequence[Records],
    folder: Path,
    *,
    shards: int,
    longest: int | None,
    workers: int,
    described: Sequence[str],
    advance: Callable[[int], object],
    part: Part | None = None,
) -> list[list[str]]:
    """Writes all records of `sources`, and returns those that were left out.

    With `part` it writes the shards of one machine among several that share `folder`, and returns what those leave out. A call
    without it then writes what is missing, and completes the folder.

    Args:
        sources: where they are from.
        folder: a new one, or one of the same preparation that was stopped.
        shards: number of files.
        longest: see `ShardWriter`.
        workers: processes.
        described: what the sources are; a folder that was begun from others is refused.
        advance: called with the number of records that are done, those of an earlier preparation at once.
        part: which shards are written; all by default.

    Raises:
        ConfigError: the folder is complete, holds something else, or was begun from other sources or settings.
        WorkerDiedError: a process died; the same call goes on.
    """
    writer = ShardWriter(sources, folder, shards, longest)
    plan = hashlib.sha256(repr((list(described), [len(each) for each in sources], shards, longest)).encode()).hexdigest()
    _begin(folder, plan)
    own = (part or Part(0, 1)).shards(shards)
    written = {shard: done for shard in own if (done := writer.done(shard)) is not None}
    for done in written.values():
        advance(done.records + len(done.skipped))
    for shard, done in map_in_processes(writer, [shard for shard in own if shard not in written], workers):
        written[shard] = done
        advance(done.records + len(done.skipped))
    in_order = [written[shard] for shard in own]
    skipped = [each for done in in_order for each in done.skipped]
    if part is None:
        _finish(folder, in_order, skipped)
    return skipped


def shrink(content: bytes, longest: int, name: str) -> bytes:
    """An encoded image whose longer side is at most `longest`; the same bytes if it is so already.

    A JPEG stays one, with the quantisation and subsampling that it had; other formats become PNG, and modes other than 8-bit
    grey and colour RGB, as the model sees them.

    Raises ValueError when it cannot be decoded.
    """
    with foreign_errors(ValueError, f"cannot read {name}"), Image.open(io.BytesIO(content)) as image:
        if max(image.size) <= longest:
            return content
        kept = {"exif": image.info["exif"]} if "exif" in image.info else {}
        how: dict[str, Any] = {"format": "png", **kept}  # Any: options of Pillow's formats
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            sampling = JpegImagePlugin.get_sampling(image)
            how = {"format": "jpeg", "qtables": image.quantization, "subsampling": sampling, **kept}
        pixels: Image.Image = image
        if how["format"] == "png" and (image.mode not in _SHRUNK_MODES or "transparency" in image.info):
            pixels = to_rgb(image)
        pixels.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)  # from all pixels
        output = io.BytesIO()
        pixels.save(output, **how)
    return output.getvalue()


def _as_json(tree: object) -> str:
    """JSON text. Raises BadRecord for what is no text."""
    text = json.dumps(tree, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"{text[max(0, error.start - 30) : error.end]!r} contains half of a surrogate pair, which is not a character"
        raise BadRecord(Problem("malformed", detail)) from error
    return text


def _read(source: object, name: str) -> bytes:
    """The bytes of a file, wherever it is. Raises BadRecord."""
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str | Path):
        raise BadRecord(Problem("malformed", f"{name} is of type {type(source).__name__}, which cannot be stored"))
    try:
        place = locate(source)
        if isinstance(place, bytes):
            return place
        if not place.is_dir():
            return storage.read_bytes(place)
    except (OSError, ValueError) as error:
        raise BadRecord(Problem("missing-file", f"cannot read {name}: {error}")) from error
    raise BadRecord(Problem("unreadable-video", f"{name} is a folder of frames: give them as a list, or a file"))


def _begin(folder: Path, plan: str) -> None:
    if (folder / _INFO).exists():
        raise ConfigError(f"{folder} holds a data set already; choose another folder, or delete it")
    if folder.exists() and any(folder.iterdir()):
        begun = (folder / _PLAN).read_text() if (folder / _PLAN).exists() else ""
        if begun != plan:
            raise ConfigError(
                f"{folder} is not empty, and was not begun from these sources and settings; choose another folder"
            )
    write_text(folder / _PLAN, plan)


def _finish(folder: Path, written: Sequence[Written], skipped: Sequence[Sequence[str]]) -> None:
    """Writes what describes the data set; then the notes on single shards are not needed any more."""
    lines: list[JsonTree] = [dict(zip(("record", "kind", "detail"), each, strict=True)) for each in skipped]
    write_text(folder / SKIPPED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=NAME, split=SPLIT, filetype_suffix="array_record")
    lengths, size = [each.records for each in written], sum(each.num_bytes for each in written)
    split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=_FEATURES, split_infos=[split], filename_template=_FILES, check_data=False
    )
    for note in [*folder.glob(".[0-9]*.json"), folder / _PLAN]:
        note.unlink()
