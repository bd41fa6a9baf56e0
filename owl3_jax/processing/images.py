"""Images to the squared RGB images that the vision encoder takes. Normalisation to [-1, 1] happens in the model.

`load_image` decodes, `to_rgb` converts every mode to RGB, `squash` resizes. The official processor expects RGB and its callers
do the first two, so these choices are ours:

* EXIF orientation is applied: the model sees the picture as a viewer shows it.
* Transparent images, palettes and grey ones too, are composited over white.
* 16-bit grey keeps its upper eight bits (Pillow's own conversion would clip at 255).
* CMYK, YCbCr, LAB, HSV and 1-bit images take Pillow's conversion.
"""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps

# Decoded (`load_image` checks that an array is uint8 [height, width, 3]), encoded, or the path of a file.
ImageSource = Image.Image | Shaped[np.ndarray, "..."] | bytes | str | Path

# A small file can unpack to any size. Pillow warns above this number, and refuses twice as many.
MAX_PIXELS = 89_478_485

_TRANSPARENT_MODES = ("RGBA", "LA", "PA")
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow's decoders raise on damaged files; OSError includes a missing file and an unknown format.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised where warnings are errors
)
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class UnreadableImage(ValueError):
    """An image that cannot be decoded, is empty or too large; the message names it."""


def load_image(source: ImageSource, name: str) -> Image.Image:
    """One image as an upright RGB image.

    Args:
        source: a Pillow image, a uint8 array [height, width, 3], encoded bytes, or the path of a file.
        name: its name in messages.

    Raises:
        UnreadableImage: with `name` and the cause.
    """
    try:
        with _open(source) as image:
            _check_pixels(image)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except _DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def upright_size(source: ImageSource, name: str) -> tuple[int, int]:
    """(width, height) of what `load_image` returns, from the file's header where its format allows it.

    Raises UnreadableImage with `name` and the cause.
    """
    try:
        with _open(source) as image:
            _check_pixels(image)
            # Pillow gives the upright size of a TIFF file already.
            turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            return (image.height, image.width) if turned else image.size
    except _DECODER_ERRORS as error:
        raise _unreadable(name, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB (itself when it is already); see the module's docstring for what each mode becomes."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _WIDE_MODES:
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey.clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def squash(image: Image.Image, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes an RGB image to a square, whatever its aspect ratio, as the official processor does.

    Returns:
        The image with S = `size`; Pillow's bicubic filter, antialiased, identity at equal size.
    """
    if image.mode != "RGB":
        raise ValueError(f"squash takes an RGB image, got mode {image.mode!r}; convert it with to_rgb")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _open(source: ImageSource) -> contextlib.AbstractContextManager[Image.Image]:
    """The image, not yet decoded when it comes from a file, which is closed at the end."""
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    if isinstance(source, np.ndarray):
        return contextlib.nullcontext(_from_array(source))
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _from_array(array: Shaped[np.ndarray, "..."]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"its array is {array.dtype} {array.shape}; it must be uint8 [height, width, 3]")
    return Image.fromarray(array)


def _check_pixels(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels; 1 to {MAX_PIXELS} can be read")


def _unreadable(name: str, error: Exception) -> UnreadableImage:
    return UnreadableImage(f"cannot read image {name}: {error}")
