"""Whole files, a few kilobytes each, from which damaged ones are made."""

import dataclasses
import io
import os
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Literal, cast

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import ExifTags, Image

Kind = Literal["image", "video"]

_WIDTH, _HEIGHT = 24, 18
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
_WITH_EXIF = ("AVIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
_VARIANTS: tuple[tuple[str, str, Mapping[str, object]], ...] = (
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG2000", "RGB", {"no_jp2": True}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "I;16", {"transparency": 700}),
    ("TGA", "RGB", {"compression": "tga_rle"}),
    *(("TIFF", "RGB", {"compression": name}) for name in ("jpeg", "packbits", "tiff_adobe_deflate", "tiff_lzw", "zstd")),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"big_tiff": True}),
    *(("DDS", "RGBA", {"pixel_format": name}) for name in ("DXT1", "DXT3", "DXT5", "BC5")),
)
_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # AVIF would hold the time at which it was written

_CODECS: Mapping[str, tuple[str, ...]] = {  # by FFmpeg's name of the container
    "asf": ("wmv2", "msmpeg4v3", "mpeg4", "libx264"),
    "avi": ("mpeg4", "libx264", "mjpeg", "huffyuv", "ffv1", "rawvideo", "msmpeg4v3"),
    "flv": ("flv", "libx264"),
    "gif": ("gif",),
    "matroska": ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "ffv1", "mpeg2video"),
    "mov": ("libx264", "png", "mjpeg", "qtrle", "h263"),
    "mp4": ("libx264", "libx265", "mpeg4", "libsvtav1", "libvpx-vp9"),
    "mpeg": ("mpeg1video", "mpeg2video"),
    "mpegts": ("libx264", "libx265", "mpeg2video"),
    "ogg": ("libvpx",),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
}
_SUFFIXES = {"asf": ".wmv", "matroska": ".mkv", "mpeg": ".mpg", "mpegts": ".ts", "ogg": ".ogv"}
_PIXELS = {"gif": "rgb8", "png": "rgb24", "qtrle": "rgb24", "mjpeg": "yuvj420p", "huffyuv": "yuv422p"}
_RATES = {"mpeg1video": 25, "mpeg2video": 25}  # frames per second; the standards list which there are
_RATE = 5
_OPTIONS = {"libx265": {"x265-params": "log-level=none"}}
_FRAMES, _VIDEO_WIDTH, _VIDEO_HEIGHT = 6, 128, 96  # 128 x 96 is the smallest that H.263 takes


@dataclasses.dataclass(frozen=True)
class Seed:
    """A whole file."""

    kind: Kind
    format: str  # Pillow's or FFmpeg's name
    variant: str  # mode or codec, and options
    suffix: str
    content: bytes

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"{self.format}/{self.variant}"


def image_seeds() -> tuple[Seed, ...]:
    """One file of each format and mode that Pillow writes, and of their common variants.

    Some are refused as they are: vector formats, and grey of a range that nobody states.
    """
    return tuple(_images())


def video_seeds() -> tuple[Seed, ...]:
    """One file of each container and codec."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its errors alone
    return tuple(_video(container, codec) for container, codecs in _CODECS.items() for codec in codecs)


def _images() -> Iterator[Seed]:
    Image.init()
    for name in sorted(Image.SAVE):
        for mode in _MODES:
            yield from _image(name, mode, mode, {})
    for name, mode, options in _VARIANTS:
        yield from _image(name, mode, ", ".join([mode, *(f"{key} {value}" for key, value in options.items())]), options)
    for number, name in enumerate(_WITH_EXIF):
        yield from _image(name, "RGB", "RGB, exif", {"exif": _exif(orientation=3 + number)})
    for name in _ANIMATED:
        pictures = [_picture("RGB", shift) for shift in (3, 6)]
        yield from _image(name, "RGB", "RGB, animated", {"save_all": True, "append_images": pictures})


def _image(name: str, mode: str, variant: str, options: Mapping[str, object]) -> Iterator[Seed]:
    file = io.BytesIO()
    dates = {"creationDate": time.gmtime(0), "modDate": time.gmtime(0)} if name == "PDF" else {}
    try:
        _picture(mode).save(file, name, **options, **dates)
    except (OSError, ValueError, KeyError, RuntimeError):  # the format has no such mode, or its writer is a stub
        return
    suffixes = sorted(suffix for suffix, format_name in Image.registered_extensions().items() if format_name == name)
    yield Seed("image", name, variant, suffixes[0] if suffixes else "", file.getvalue())


def _picture(mode: str, shift: int = 0) -> Image.Image:
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    alpha = 255 - 8 * columns
    pixels = np.stack([rows * 13 + shift, columns * 9 + shift, (rows * columns + 20 * shift) % 256, alpha], -1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.frombytes("LAB", picture.size, pixels[..., :3].tobytes())
    return picture.convert(mode) if mode in ("RGBA", "LA") else picture.convert("RGB").convert(mode)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "owl3"
    exif[ExifTags.Base.XResolution] = 72.0
    return exif


def _video(container_name: str, codec: str) -> Seed:
    file, rate = io.BytesIO(), _RATES.get(codec, _RATE)
    # Without bitexact, some containers write random identifiers.
    with av.open(file, "w", format=container_name, options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options={"threads": "1", **_OPTIONS.get(codec, {})}))
        stream.width, stream.height = _VIDEO_WIDTH, _VIDEO_HEIGHT
        stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
        stream.codec_context.gop_size, stream.codec_context.time_base = 4, Fraction(1, rate)
        for number in range(_FRAMES):
            picture = _picture("RGB", 5 * number).resize((_VIDEO_WIDTH, _VIDEO_HEIGHT))
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    suffix = _SUFFIXES.get(container_name, f".{container_name}")
    return Seed("video", container_name, codec, suffix, file.getvalue())
