"""Video files by PyAV: counts frames without decoding, then decodes the wanted ones and no more than they need.

Both passes read all packets from the first one on: skipping a packet costs only the reading of its bytes and, unlike a seek,
works the same in every container. Decoding starts at the keyframe before a wanted frame and ends with that frame.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from owl3_jax.processing.video_frames import FrameTable, PacketInfo, frame_table

# FFmpeg would also open playlists, which make it read other files, and any text file, as terminal art.
CONTAINERS = ("asf", "avi", "flv", "gif", "matroska", "mov", "mpeg", "mpegts", "ogg")
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
_MISSING_SECONDS = 1.0  # a file that ends this much earlier than its header states is truncated
_VP8_SHOWN = 0x10  # bit of the first byte of a VP8 packet
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
_REMEDY = "; if a video player shows it, convert it to MP4; otherwise download it again"

_AnyPacket = TypeVar("_AnyPacket", av.Packet, PacketInfo)


class UnreadableVideo(ValueError):
    """A video that cannot be read; the message names it and says why and what to do."""


def read_frame_table(path: Path, name: str) -> FrameTable:
    """Finds the frames of a video file without decoding any. It reads the whole file, since headers may be wrong.

    Packets before the first keyframe are ignored; recordings cut out of a broadcast have some.

    Raises UnreadableVideo, whose message includes `name`: no video, no frames, or a truncated file.
    """
    with _naming(name), _open(path) as container:
        stream = _video_stream(container, name)
        # Only an index of all packets has sizes (MP4); an index of keyframes (Matroska) has none.
        promised = sum(entry.size > 0 for entry in stream.index_entries)
        duration = (container.duration or 0) / av.time_base
        packets, whole, end = _scan(container, stream)
        fps = Fraction(stream.average_rate or 0)
    _check_complete(whole >= promised, f"{whole} of {promised} frames", name)
    _check_complete(end + _MISSING_SECONDS >= duration, f"{end:.1f} of {duration:.1f} seconds", name)
    table = frame_table(list(_from_first_keyframe(packets)), fps)
    if not table.num_frames:
        raise UnreadableVideo(f"cannot read video {name}: it has no frames{_REMEDY}")
    return table


def decode_frames(path: Path, table: FrameTable, wanted: Sequence[int], name: str) -> Iterator[Image.Image]:
    """The frames `wanted`, in RGB and upright, one at a time.

    Quarter and half turns that the file specifies are applied (phones store upright videos that way); mirroring is not.

    Args:
        path: the file.
        table: what `read_frame_table` found in it.
        wanted: frame numbers, ascending, each once.
        name: the video's name in errors.

    Raises UnreadableVideo, whose message includes `name`, when a packet that they need is damaged.
    """
    missing = list(reversed(wanted))
    with _naming(name), _open(path) as container:
        stream = _video_stream(container, name)
        for number, frame in _numbered(_decode(container, stream, table.runs(wanted)), table):
            if number == missing[-1]:
                yield _upright(frame)
                missing.pop()
            if not missing:
                return
    raise UnreadableVideo(f"cannot read video {name}: frame {missing[-1]} of {table.num_frames} is damaged{_REMEDY}")


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise UnreadableVideo(f"cannot read video {name}: {error}{_REMEDY}") from error


def _open(path: Path) -> InputContainer:
    # With the prefix a file called `http:x` is a file. Metadata in a wrong encoding does not matter.
    return av.open(f"file:{path}", options=_OPTIONS, metadata_errors="ignore")


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or Disposition.attached_pic in stream.disposition:  # an album's cover
        raise UnreadableVideo(f"cannot read video {name}: it has no video stream; give a file with pictures, not only sound")
    return stream


def _scan(container: InputContainer, stream: VideoStream) -> tuple[list[PacketInfo], int, float]:
    """The packets of `stream`, how many of them are whole, and when the last packet of any stream ends, in seconds."""
    packets, whole, end = [], 0, 0.0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and packet.size:
            packets.append(PacketInfo(packet.pts, packet.is_keyframe, _is_shown(packet, stream)))
            whole += not packet.is_corrupt
    return packets, whole, end


def _is_shown(packet: av.Packet, stream: VideoStream) -> bool:
    if stream.codec_context.name == "vp8":
        return bool(memoryview(packet)[0] & _VP8_SHOWN)
    # An edit list discards packets; a last frame that was recorded only in part is corrupt.
    return not (packet.is_discard or packet.is_corrupt)


def _check_complete(is_complete: bool, part: str, name: str) -> None:
    if not is_complete:
        raise UnreadableVideo(f"cannot read video {name}: it is truncated: {part} are there{_REMEDY}")


def _from_first_keyframe(packets: Iterable[_AnyPacket]) -> Iterator[_AnyPacket]:
    return itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)


def _decode(container: InputContainer, stream: VideoStream, runs: Sequence[range]) -> Iterator[VideoFrame]:
    """Decodes some runs of packets, counted from the first keyframe on; frames come in order of presentation."""
    packets = enumerate(_from_first_keyframe(packet for packet in container.demux(stream) if packet.size))
    for run in runs:
        for position, packet in packets:
            if position in run:
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


def _upright(frame: VideoFrame) -> Image.Image:
    quarters = round(frame.rotation / 90) % 4  # counterclockwise, as Pillow counts
    image = frame.to_image()
    return image.transpose(_TURNS[quarters]) if quarters else image
