"""Small video files whose frames tell their number."""

from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 128, 32
_BITS = 8  # stripes of 16 pixels, white for a one: lossy coding leaves them apart
_TICKS = 1000  # per second

FIXED_GOP = MappingProxyType({"sc_threshold": "0"})
B_FRAMES = MappingProxyType({"x264-params": "scenecut=0:b-adapt=0"})  # of H.264: as many as allowed, some refer to others
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def number_image(number: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: stripes that spell `number` < 256 in binary."""
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], np.uint8)
    row = np.repeat(bits * 255, WIDTH // _BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(image: Image.Image) -> int:
    """The number that an image of `number_image` spells."""
    grey = np.asarray(image.convert("L"), np.float64).reshape(image.height, _BITS, -1)
    return sum(int(level > 127) << bit for bit, level in enumerate(grey.mean((0, 2))))


def write_video(
    path: Path,
    frames: int,
    *,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    durations: Sequence[int] = (100,),
    start: int = 0,
    turn: int = 0,
    options: Mapping[str, str] = FIXED_GOP,
    container_options: Mapping[str, str] = NO_OPTIONS,
) -> Path:
    """Writes `frames` numbered frames.

    Args:
        path: its suffix names the container.
        frames: how many.
        codec: FFmpeg's name.
        gop: frames from a keyframe to the next.
        b_frames: most B-frames in a row.
        durations: milliseconds of each frame, used in turns.
        start: time of the first frame, ms.
        turn: degrees that a player has to turn the pictures, counterclockwise.
        options: of the codec; `FIXED_GOP` for H.264 and MPEG-4 keeps them from adding keyframes.
        container_options: of the container.
    """
    with av.open(str(path), "w", options=dict(container_options)) as container:
        stream = container.add_stream(codec, rate=Fraction(_TICKS, durations[0]), options=dict(options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        unit = stream.codec_context.time_base = Fraction(1, _TICKS) if len(durations) > 1 else Fraction(durations[0], _TICKS)
        if turn:
            stream.set_display_rotation(turn)
        time = start
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(number_image(number), format="rgb24")
            frame.pts, frame.time_base = round(Fraction(time, _TICKS) / unit), unit
            container.mux(stream.encode(frame))
            time += durations[number % len(durations)]
        container.mux(stream.encode(None))
    return path


def write_packets(
    path: Path,
    packets: Sequence[bytes],
    template: Path,
    *,
    keys: Container[int] = (0,),
    times: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, 10),
) -> Path:
    """Writes packets that are coded already.

    Args:
        path: its suffix names the container.
        packets: in decoding order.
        template: a file whose video stream says how they are coded.
        keys: numbers of the keyframes.
        times: of each packet, in ticks; counted by default.
        tick: the unit of times, in seconds.
    """
    with av.open(str(template)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, encoded in enumerate(packets):
            packet = av.Packet(encoded)
            packet.pts = packet.dts = times[number] if times else number
            packet.duration = 1
            packet.time_base, packet.stream, packet.is_keyframe = tick, stream, number in keys
            target.mux(packet)
    return path


def read_packets(path: Path) -> list[bytes]:
    """The coded packets of a file's video, in decoding order."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]
