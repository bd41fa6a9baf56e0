"""Video files by PyAV: counts frames without decoding, then decodes the wanted ones and no more than they need.

Both passes read all packets from the first one on: skipping a packet costs only the reading of its bytes and, unlike a seek,
works the same in every container. Decoding starts at the keyframe before a wanted frame and ends with that frame.
"""

import functools
import io
import itertools
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.h264_fields import Field, FieldCoding, field_coding, pictures, read_field
from owl3_jax.processing.images import MAX_PIXELS, pixel_limit
from owl3_jax.processing.video_codec import undecodable_codec
from owl3_jax.processing.video_ending import File, is_cut_off
from owl3_jax.processing.video_frames import Clock, FrameTable, PacketInfo, frame_table
from owl3_jax.processing.video_picture import check_pixels, to_image

# FFmpeg would also open playlists, which make it read other files, and any text file, as terminal art.
CONTAINERS = ("asf", "avi", "flv", "gif", "matroska", "mov", "mpeg", "mpegts", "ogg")
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
# One time a packet, which may be that of decoding. The others have both times.
_ONE_TIME = ("asf", "avi", "matroska", "ogg")
_TABLES_KEPT = 64  # of an hour, one takes some megabytes
_MISSING_SECONDS = 1.0  # a file that is cut off, but lacks less than this, is read
_VP8_SHOWN = 0x10  # bit of the first byte of a VP8 packet
_REMEDY = "; if a video player shows it, convert it to MP4; otherwise download it again"


class UnreadableVideo(ValueError):
    """A video that cannot be read; the message names it and says why and what to do."""


class _Header(NamedTuple):
    """What a file states before its packets are read."""

    container: str  # FFmpeg's name of the format
    clock: Clock
    indexed: int  # frames that the index lists; 0: it lists keyframes only, or there is none
    frames: int  # 0: unknown
    duration: float | None  # seconds


class _Scan(NamedTuple):
    """What reading all packets of a file finds."""

    pictures: list[PacketInfo]  # of the video stream
    whole: int  # packets of that stream that are not cut
    end: float  # when the last packet of any stream ends, in seconds


def read_frame_table(source: Path | bytes, name: str) -> FrameTable:
    """Finds the frames of a video without decoding any. It reads the whole file, since headers may be wrong.

    Packets before the first keyframe are ignored; recordings cut out of a broadcast have some. Tables of the files that were
    read last are kept: a video is opened for its number of frames before it is decoded.

    Args:
        source: a file, or its content.
        name: the video's name in errors.

    Raises UnreadableVideo, whose message includes `name`: no video, no decoder for it, no frames, or a truncated file.
    """
    if isinstance(source, bytes):
        return _read_frame_table(source, name)
    with foreign_errors(UnreadableVideo, f"cannot read video {name}", _REMEDY):
        status = source.stat()
    return _kept_frame_table(source, (status.st_size, status.st_mtime_ns, status.st_ino), name)


@functools.lru_cache(_TABLES_KEPT)
def _kept_frame_table(source: Path, version: tuple[int, int, int], name: str) -> FrameTable:
    del version  # a file that has changed is read again
    return _read_frame_table(source, name)


def _read_frame_table(source: Path | bytes, name: str) -> FrameTable:
    with foreign_errors(UnreadableVideo, f"cannot read video {name}", _REMEDY):
        with _open(source) as container:
            stream = _video_stream(container, source)
            header, scan = _header(container, stream), _scan(container, stream)
        present = _present_part(source, header, scan)
    if present:
        raise UnreadableVideo(f"cannot read video {name}: it is truncated: {present} there{_REMEDY}")
    from_key = list(itertools.dropwhile(lambda picture: not picture.is_keyframe, scan.pictures))
    table = frame_table(from_key, header.clock)
    if not table.num_frames:
        raise UnreadableVideo(f"cannot read video {name}: it has no frames{_REMEDY}")
    return table


def decode_frames(
    source: Path | bytes, table: FrameTable, wanted: Sequence[int], name: str
) -> Generator[Image.Image, None, None]:
    """The frames `wanted`, in RGB and upright, one at a time.

    Quarter turns and mirrors that the file specifies are applied (phones store upright videos that way).

    Args:
        source: a file, or its content.
        table: what `read_frame_table` found in it.
        wanted: frame numbers, ascending, each once.
        name: the video's name in errors.

    Raises UnreadableVideo, whose message includes `name`, when a packet that they need is damaged.
    """
    missing, runs = list(reversed(wanted)), table.runs(wanted)
    with foreign_errors(UnreadableVideo, f"cannot read video {name}", _REMEDY), _open(source) as container:
        stream = _video_stream(container, source)
        for number, frame in _numbered(_decode(container, stream, runs), table):
            if number == missing[-1]:
                yield to_image(frame)
                missing.pop()
            if not missing:
                return
    raise UnreadableVideo(f"cannot read video {name}: frame {missing[-1]} of {table.num_frames} is damaged{_REMEDY}")


def _open(source: Path | bytes) -> InputContainer:
    # With the prefix a file called `http:x` is a file. Metadata in a wrong encoding does not matter.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    try:
        return av.open(file, "r", options=_OPTIONS | _pixel_option(), metadata_errors="ignore")
    except av.ArgumentError as error:
        raise ValueError(f"it is none of the formats {', '.join(CONTAINERS)}, or its header is damaged") from error


def _pixel_option() -> dict[str, str]:
    """For FFmpeg, which looks at it before it has a frame's memory: the size may change within a video.

    No less than `MAX_PIXELS`: FFmpeg would call a larger video damaged, where `check_pixels` can say what is wrong, and it
    counts the pixels with which a codec fills up blocks.
    """
    return {"max_pixels": str(max(pixel_limit(), MAX_PIXELS))}


def _video_stream(container: InputContainer, source: Path | bytes) -> VideoStream:
    """The stream of the video that a player would show. Raises ValueError when there is none, or none that can be decoded."""
    streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
    if not streams:  # sound, perhaps with an album's cover
        raise ValueError("it has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    # PyAV's annotation omits that a stream without a decoder has no context.
    context: av.CodecContext | None = stream.codec_context
    if context is None:
        codec = undecodable_codec(functools.partial(_open, source), stream.index)
        raise ValueError(f"FFmpeg has no decoder for its codec, {codec}")
    check_pixels(stream.width, stream.height)
    context.options = _pixel_option()
    return stream


def _header(container: InputContainer, stream: VideoStream) -> _Header:
    name = container.format.name
    reorders = bool(stream.codec_context.has_b_frames) and name.partition(",")[0] in _ONE_TIME
    clock = Clock(stream.time_base or Fraction(1), stream.average_rate or Fraction(0), reorders)
    # Only an index of all packets has sizes (MP4, AVI); an index of keyframes (Matroska) has none.
    indexed = sum(entry.size > 0 for entry in stream.index_entries)
    duration = None if container.duration is None else container.duration / av.time_base
    return _Header(name, clock, indexed, stream.frames, duration)


def _scan(container: InputContainer, stream: VideoStream) -> _Scan:
    coding = _field_coding(stream)
    packets, whole, end = [], 0, 0.0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and packet.size:
            info = PacketInfo(packet.pts, packet.is_keyframe, _is_shown(packet, stream), packet.dts)
            packets.append((info, _field(packet, coding)))
            whole += not packet.is_corrupt
    return _Scan([picture[0][0] for picture in pictures(packets, lambda packet: packet[1])], whole, end)


def _field_coding(stream: VideoStream) -> FieldCoding | None:
    context = stream.codec_context
    return field_coding(context.extradata or b"") if context.name == "h264" else None


def _field(packet: av.Packet, coding: FieldCoding | None) -> Field | None:
    return read_field(bytes(packet), coding) if coding else None


def _is_shown(packet: av.Packet, stream: VideoStream) -> bool:
    if stream.codec_context.name == "vp8":
        return bool(memoryview(packet)[0] & _VP8_SHOWN)
    # An edit list discards packets; a last frame that was recorded only in part is corrupt.
    return not (packet.is_discard or packet.is_corrupt)


def _present_part(source: Path | bytes, header: _Header, scan: _Scan) -> str:
    """What is there of a truncated file, in words; nothing if it is whole, or lacks less than a second."""
    if scan.whole < header.indexed:
        return f"{scan.whole} of {header.indexed} frames are"
    file: File = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with file:
        if not is_cut_off(file, header.container):
            return ""
    if scan.whole < header.frames:
        return f"{scan.whole} of {header.frames} frames are"
    if header.duration is None:  # FFmpeg does not believe it where the size of an ASF file is another than stated
        return "only its beginning is" if header.container == "asf" else ""
    return f"{scan.end:.1f} of {header.duration:.1f} seconds are" if scan.end + _MISSING_SECONDS < header.duration else ""


def _decode(container: InputContainer, stream: VideoStream, runs: Sequence[range]) -> Iterator[VideoFrame]:
    """Decodes some runs of pictures, counted from the first keyframe on; frames come in order of presentation."""
    coding = _field_coding(stream)
    packets = (packet for packet in container.demux(stream) if packet.size)
    found = pictures(packets, lambda packet: _field(packet, coding))
    counted = enumerate(itertools.dropwhile(lambda picture: not picture[0].is_keyframe, found))
    for run in runs:
        for position, picture in counted:
            if position in run:
                for packet in picture:
                    yield from packet.decode()
            if position == run[-1]:
                break
        yield from stream.codec_context.decode(None)  # frames that the decoder still holds, to present them in order
        stream.codec_context.flush_buffers()


def _numbered(frames: Iterator[VideoFrame], table: FrameTable) -> Iterator[tuple[int | None, VideoFrame]]:
    numbers = table.numbers()
    if numbers is None:
        yield from enumerate(frames)
        return
    for frame in frames:
        yield (None if frame.pts is None else numbers.get(frame.pts)), frame
