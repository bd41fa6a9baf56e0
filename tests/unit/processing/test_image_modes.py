"""Every mode of Pillow as RGB: the values that a viewer shows."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from owl3_jax.processing.image_modes import to_rgb
from owl3_jax.processing.images import UnreadableImage, load_image

WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_of(source: object) -> list[int]:
    """The first row of a grey picture, as it is shown."""
    shown = np.asarray(load_image(source, "grey"))
    assert (shown == shown[..., :1]).all()
    return shown[0, :, 0].tolist()


def twelve_bit_tiff(levels: list[int]) -> bytes:
    """One row of grey, three bytes for two values, as microscopes and scanners write it."""
    bits = "".join(f"{level:012b}" for level in levels)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: len(levels), 257: 1, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the data starts
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + directory + bytes(4) + data


def test_transparency_is_laid_over_white():
    invisible, half = (255, 0, 0, 0), (0, 0, 0, 128)
    image = Image.new("RGBA", (2, 1))
    image.putdata([invisible, half])
    rgb = load_image(encode(image), "alpha")
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == WHITE
    assert rgb.getpixel((1, 0)) == (127, 127, 127)
    assert to_rgb(Image.new("LA", (1, 1), (40, 0))).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(("straight", "premultiplied"), [("RGBA", "RGBa"), ("LA", "La")])
def test_premultiplied_transparency_is_white_too(straight, premultiplied):
    image = Image.new(straight, (2, 1))
    image.putdata([(200,) * (len(straight) - 1) + (0,), (40,) * (len(straight) - 1) + (255,)])
    assert [to_rgb(image.convert(premultiplied)).getpixel((x, 0)) for x in range(2)] == [WHITE, (40, 40, 40)]


def test_transparent_colours_of_palettes_and_rgb_files_are_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    loaded = load_image(encode(palette, transparency=1), "palette")
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), WHITE]
    keyed = load_image(encode(Image.new("RGB", (1, 1), (10, 20, 30)), transparency=(10, 20, 30)), "colour key")
    assert keyed.getpixel((0, 0)) == WHITE


def test_a_palette_may_have_transparency_itself():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 10, 20, 30, 255, 0, 0, 0, 128], "RGBA")
    image.putdata([0, 1, 2])
    assert [to_rgb(image).getpixel((x, 0)) for x in range(3)] == [WHITE, (10, 20, 30), (127, 127, 127)]


def test_the_transparent_level_of_sixteen_bit_grey_is_white_and_its_neighbour_is_not():
    levels = np.array([[0, 32768, 32769, 65535]], np.uint16)
    assert grey_of(encode(Image.fromarray(levels), transparency=32768)) == [0, 255, 128, 255]


def test_sixteen_bits_keep_their_upper_eight():
    levels = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    for kind in ("tiff", "png", "ppm"):
        assert grey_of(encode(Image.fromarray(levels), kind)) == [0, 0, 1, 156, 255]


def test_twelve_bits_reach_white():
    levels = [0, 15, 16, 2048, 4095, 1024]
    assert grey_of(twelve_bit_tiff(levels)) == [0, 0, 1, 128, 255, 64]
    assert grey_of(b"P5 6 1 4095\n" + np.array(levels, ">u2").tobytes()) == [0, 0, 1, 128, 255, 64]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_grey_whose_white_is_unknown_is_refused(dtype):
    image = Image.fromarray(np.array([[0, 1]], dtype))
    for source in (image, encode(image, "tiff")):
        with pytest.raises(UnreadableImage, match=r"cannot read image 3: .*mode [FI]\), whose white is not known; convert it"):
            load_image(source, "3")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P", "LAB", "HSV"])
def test_other_modes_become_rgb(mode):
    image = Image.new(mode, (3, 2))
    assert to_rgb(image).mode == "RGB"
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))
