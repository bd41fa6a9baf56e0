"""Images of every mode that Pillow decodes to, as 8-bit RGB.

| what | becomes |
|---|---|
| transparency: channels, premultiplied too, of palettes, and a colour that the file declares | composited over white |
| grey of 9 to 16 bits | the upper eight of the bits that the file states |
| grey of 32 bits, grey as floating point | refused: their files do not say which value is white |
| grey, palettes, CMYK, YCbCr, LAB, HSV, 1 bit | Pillow's conversion |
"""

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, TiffTags

_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_BITS_PER_SAMPLE = next(number for number, tag in TiffTags.TAGS_V2.items() if tag.name == "BitsPerSample")
_SCALED_TO_16_BITS = ("PPM",)  # formats that Pillow decodes to mode "I", and scales to 65535


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB (itself when it is already); see the module's docstring for what each mode becomes.

    Raises ValueError for grey whose range is unknown.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _WIDE_GREY or image.mode == "F":
        return _wide_grey_to_rgb(image)
    if image.has_transparency_data:
        straight = image.convert(_PREMULTIPLIED[image.mode]) if image.mode in _PREMULTIPLIED else image
        layer = straight.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _wide_grey_to_rgb(image: Image.Image) -> Image.Image:
    white = _white_level(image)
    levels: Int[np.ndarray, "H W"] = np.asarray(image).astype(np.int64)
    grey: UInt8[np.ndarray, "H W"] = (levels.clip(0, white) * 256 // (white + 1)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(levels == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _white_level(image: Image.Image) -> int:
    """The value that is white. Raises ValueError when nothing says which it is."""
    bits = _stated_bits(image)
    if image.mode.startswith("I;16"):
        return 2**bits - 1 if bits else 65535
    if image.mode == "I" and image.format in _SCALED_TO_16_BITS:
        return 65535
    if image.mode == "I" and bits == 16:
        return 32767  # signed: Pillow decodes unsigned ones to another mode
    kind = "floating-point" if image.mode == "F" else "32-bit"
    raise ValueError(f"its grey is {kind} (mode {image.mode}), whose white is not known; convert it to 8 or 16 bits")


def _stated_bits(image: Image.Image) -> int:
    """Bits of a grey value as a TIFF file states them; 0 if nothing does."""
    tags = getattr(image, "tag_v2", None)
    stated = tags.get(_BITS_PER_SAMPLE) if tags is not None else None
    value = stated[0] if isinstance(stated, tuple) and stated else stated
    return value if isinstance(value, int) and 9 <= value <= 16 else 0
