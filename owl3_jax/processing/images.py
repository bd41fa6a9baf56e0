"""Images to the squared RGB images that the vision encoder takes. Normalisation to [-1, 1] happens in the model.

`load_image` decodes and turns upright, `squash` resizes; `owl3_jax.processing.image_modes` converts to RGB. The official
processor expects upright RGB images and leaves the rest to its callers, so what happens to others is our choice. EXIF
orientation is applied: the model sees the picture as a viewer shows it.
"""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.image_modes import to_rgb
from owl3_jax.processing.location import locate


@runtime_checkable
class SupportsArray(Protocol):
    """An array of another library, such as jax's or a tensor of PyTorch."""

    def __array__(self) -> Shaped[np.ndarray, "..."]: ...


# Decoded (`load_image` checks that an array is uint8 [height, width, 3]), encoded, or where it is (`locate`).
ImageSource = Image.Image | Shaped[np.ndarray, "..."] | SupportsArray | bytes | bytearray | memoryview | str | Path

# A small file can unpack to any size. Pillow warns above this number, and refuses twice as many.
MAX_PIXELS = 89_478_485  # unless `limit_pixels` sets another number

# A draft keeps at least so many times the pixels each way of what is made of it. Views of sharp photographs then differ from
# those of the whole file by 2.0 of 255 levels on average, 99 % of the values by at most 14; at half the margin by 5.7 and 36.
DRAFT_MARGIN = 2

_SHOWN = 16  # bytes of a file of no known format, which may be a web page's or a Git LFS pointer's

_FORMS = "an image is a path, encoded bytes, a Pillow image, or a uint8 array [height, width, 3]"
_TURNS = {  # what a picture needs that was stored with this EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXCHANGES_SIDES = (5, 6, 7, 8)


class UnreadableImage(ValueError):
    """An image that cannot be decoded, is empty or too large; the message names it."""


class TooManyPixels(ValueError):
    """The cause of an error: an image or a frame has more pixels than this process reads."""


class _UnreadableExif(ValueError):
    """What a picture says about itself is damaged."""


@dataclasses.dataclass
class _PixelLimit:
    pixels: int = MAX_PIXELS


_limit = _PixelLimit()


def limit_pixels(pixels: int) -> None:
    """From now on this process reads images and frames of at most so many pixels; Pillow's own limit becomes the same."""
    _limit.pixels = Image.MAX_IMAGE_PIXELS = pixels


def pixel_limit() -> int:
    """The most pixels of an image or a frame that this process reads."""
    return _limit.pixels


def load_image(source: object, name: str, draft: tuple[int, int] | None = None) -> Image.Image:
    """One image as an upright RGB image.

    Args:
        source: an `ImageSource`: a path, a `file:` or `data:` URI, encoded bytes, a Pillow image, or a uint8 array
            [height, width, 3] of numpy or of a library whose arrays convert to it.
        name: its name in messages.
        draft: the (width, height) that it is going to be resized to. A JPEG file of at least `2 * DRAFT_MARGIN` times as many
            pixels each way is then decoded at a half, a quarter or an eighth of its size: faster, and not quite the same.

    Raises:
        UnreadableImage: with `name` and the cause, whatever a decoder raised.
    """
    with _naming(name), _open(source) as image:
        _check(image)
        if draft:
            width, height = (DRAFT_MARGIN * side for side in draft)
            image.draft(None, (height, width) if _orientation(image) in _EXCHANGES_SIDES else (width, height))
        image.load()
        turn = _TURNS.get(_orientation(image))  # after `load`, which turns TIFF files itself
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def check_header(source: object, name: str) -> None:
    """Raises the UnreadableImage that `load_image` would raise for what a file's header says; nothing is decoded."""
    with _naming(name), _open(source) as image:
        _check(image)


def upright_size(source: object, name: str) -> tuple[int, int]:
    """(width, height) of what `load_image` returns, from the file's header where its format allows it.

    Raises UnreadableImage with `name` and the cause.
    """
    with _naming(name), _open(source) as image:
        _check(image)
        # Pillow gives the upright size of a TIFF file already.
        turned = image.format != "TIFF" and _orientation(image) in _EXCHANGES_SIDES
        return (image.height, image.width) if turned else image.size


def squash(image: Image.Image, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an RGB image to a square, whatever its aspect ratio, as the official processor does.

    Returns:
        The image with S = `size`; Pillow's bicubic filter, antialiased, identity at equal size.
    """
    if image.mode != "RGB":
        raise ValueError(f"squash takes an RGB image, got mode {image.mode!r}; convert it with to_rgb")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _naming(name: str) -> contextlib.AbstractContextManager[None]:
    return foreign_errors(UnreadableImage, f"cannot read image {name}")


def _open(source: object) -> contextlib.AbstractContextManager[Image.Image]:
    """The image, not yet decoded when it comes from a file, which is closed at the end."""
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    if isinstance(source, str | Path):
        source = locate(source)
    if isinstance(source, Path):
        with source.open("rb") as file:
            beginning = file.read(_SHOWN)
        return _identify(source, beginning)
    if isinstance(source, bytes | bytearray | memoryview):
        encoded = bytes(source)
        return _identify(io.BytesIO(encoded), encoded[:_SHOWN])
    if isinstance(source, SupportsArray):
        return contextlib.nullcontext(_from_array(np.asarray(source)))
    raise ValueError(f"it is {_article(type(source).__name__)}; {_FORMS}")


def _identify(file: Path | io.BytesIO, beginning: bytes) -> Image.Image:
    if not beginning:
        raise ValueError("it has no bytes")
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # Pillow's message has the address of the bytes
        raise ValueError(f"Pillow knows no such format, or its header is damaged; it begins with {beginning!r}") from None


def _article(kind: str) -> str:
    return "None" if kind == "NoneType" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _from_array(array: Shaped[np.ndarray, "..."]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        found = f"its array is {array.dtype} {array.shape}"
        raise ValueError(f"{found}; it must be uint8 [height, width, 3]{_remedy(array)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _remedy(array: Shaped[np.ndarray, "..."]) -> str:
    """What makes an image of it, as the end of a sentence."""
    if array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
        return "; put the channels last: array.transpose(1, 2, 0)"
    if array.ndim == 4:
        return "; give each image of the batch by itself: list(array)"
    if array.dtype.kind == "f":
        return "; for values from 0 to 1: (array * 255).round().astype('uint8')"
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 2, 4)):
        return "; give a Pillow image, whose mode says what the channels are"
    return ""


def _check(image: Image.Image) -> None:
    """Refuses what must not be decoded."""
    if image.format == "EPS":  # Pillow would start Ghostscript with it
        raise ValueError("EPS files are programs, which are not run; convert it to PNG")
    if not 0 < (pixels := image.width * image.height) <= pixel_limit():
        error = TooManyPixels if pixels else ValueError
        raise error(f"it has {image.width} x {image.height} pixels; 1 to {pixel_limit()} can be read")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation as stored; 0 where there is none, or where the EXIF cannot be read.

    Only this tag is looked at, and nothing is written: other tags may be damaged, and viewers do not care.
    """
    try:
        with foreign_errors(_UnreadableExif, "EXIF"):
            orientation: object = image.getexif().get(ExifTags.Base.Orientation)
    except _UnreadableExif:
        return 0
    return orientation if isinstance(orientation, int) else 0
