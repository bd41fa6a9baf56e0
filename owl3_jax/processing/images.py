"""Image files to the squared RGB images that the vision encoder takes. Normalisation to [-1, 1] happens in the model.

`load_image` decodes, `to_rgb` brings every mode to RGB, `squash` resizes. The official processor expects RGB and leaves the
first two to its callers, so the choices made here are ours:

* EXIF orientation is applied: the picture is seen as a viewer shows it.
* Transparency, of palettes and grey images too, is laid over white.
* 16-bit grey keeps its upper eight bits (Pillow's own conversion would clip at 255).
* CMYK, YCbCr, LAB, HSV and 1-bit images take Pillow's conversion.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
)


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message names it."""


def load_image(source: bytes | str | Path, name: str) -> Image.Image:
    """Decodes one image, from encoded bytes or a path, to an RGB image.

    Raises UnreadableImage, saying `name` and the cause.
    """
    try:
        encoded = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except _DECODER_ERRORS as error:
        raise UnreadableImage(f"cannot read image {name}: {error}") from error


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


def squash(image: Image.Image, size: int) -> np.ndarray:
    """Resizes an RGB image to a square, whatever its aspect ratio, as the official processor does.

    Returns:
        uint8 [S, S, 3], S = `size`; Pillow's bicubic filter, antialiased, identity at equal size.
    """
    if image.mode != "RGB":
        raise ValueError(f"squash takes an RGB image, got mode {image.mode!r}; convert it with to_rgb")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
