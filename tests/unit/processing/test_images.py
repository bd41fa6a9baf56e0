"""Decoding, conversion to RGB and squashing of images."""

import hashlib
import io
import struct
import zlib
from warnings import simplefilter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.processing.images import MAX_PIXELS, UnreadableImage, load_image, squash, to_rgb, upright_size

WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """pixel[y, x, c] = (3x + 5y + 70c) mod 256, the picture of the golden file."""
    y, x, c = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    return Image.fromarray(((3 * x + 5 * y + 70 * c) % 256).astype(np.uint8))


PNG = encode(gradient(7, 5))


def test_squash_equals_the_official_processor_bit_by_bit():
    # `one_image_no_crop` of the golden file that the official processor printed.
    pixels = squash(gradient(500, 500), 384)
    assert (pixels.shape, pixels.dtype) == ((384, 384, 3), np.uint8)
    assert pixels.sum() == 56400221
    digest = hashlib.sha256(pixels.transpose(2, 0, 1).tobytes()).hexdigest()
    assert digest == "bb4966de0e119101728b7bc9c514995f176359785302f01cf682aa7398bcd47c"


def test_squash_ignores_the_aspect_ratio_and_keeps_equal_sizes():
    assert squash(gradient(17, 5), 11).shape == (11, 11, 3)
    np.testing.assert_array_equal(squash(gradient(13, 13), 13), np.asarray(gradient(13, 13)))


def test_squash_refuses_other_modes():
    with pytest.raises(ValueError, match="mode 'L'; convert it with to_rgb"):
        squash(Image.new("L", (3, 3)), 3)


def test_bytes_and_paths_load_alike(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    for source in (PNG, tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(load_image(source, "a")), np.asarray(gradient(7, 5)))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer has to turn the picture by 90 degrees clockwise
    stored = gradient(7, 5)
    shown = load_image(encode(stored, exif=exif), "turned")
    assert shown.size == (5, 7)
    np.testing.assert_array_equal(np.asarray(shown), np.rot90(np.asarray(stored), k=-1))


def test_transparency_is_laid_over_white():
    invisible, half = (255, 0, 0, 0), (0, 0, 0, 128)
    image = Image.new("RGBA", (2, 1))
    image.putdata([invisible, half])
    rgb = load_image(encode(image), "alpha")
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == WHITE
    assert rgb.getpixel((1, 0)) == (127, 127, 127)
    assert to_rgb(Image.new("LA", (1, 1), (40, 0))).getpixel((0, 0)) == WHITE


def test_transparent_colours_of_palettes_and_rgb_files_are_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    loaded = load_image(encode(palette, transparency=1), "palette")
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), WHITE]
    keyed = load_image(encode(Image.new("RGB", (1, 1), (10, 20, 30)), transparency=(10, 20, 30)), "colour key")
    assert keyed.getpixel((0, 0)) == WHITE


def test_sixteen_bits_keep_their_upper_eight():
    levels = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        assert np.asarray(load_image(encode(image, "tiff"), "wide"))[0, :, 0].tolist() == [0, 0, 1, 156, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P", "LAB", "HSV"])
def test_other_modes_become_rgb(mode):
    image = Image.new(mode, (3, 2))
    assert to_rgb(image).mode == "RGB"
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("damaged", [b"", b"not an image", PNG[:20], PNG[:-30], PNG.replace(b"IDAT", b"IDAX")])
def test_a_damaged_image_is_named(damaged):
    with pytest.raises(UnreadableImage, match="cannot read image 3 of web/train"):
        load_image(damaged, "3 of web/train")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImage, match=r"cannot read image cat: .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png", "cat")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5))
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, on damaged metadata
def test_whatever_is_damaged_it_loads_or_is_unreadable(kind, damage):
    encoded = bytearray(encode(gradient(7, 5), kind))
    for place, value in damage:
        encoded[int(place * len(encoded))] = value
    try:
        image = load_image(bytes(encoded), "damaged")
    except UnreadableImage:
        return
    assert image.mode == "RGB"


def test_decoded_images_load_as_their_files_do():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(gradient(7, 5), exif=exif)
    expected = np.asarray(load_image(encoded, "bytes"))
    image = Image.open(io.BytesIO(encoded))
    np.testing.assert_array_equal(np.asarray(load_image(image, "image")), expected)
    np.testing.assert_array_equal(np.asarray(load_image(expected, "array")), expected)
    assert (image.size, image.getexif()[0x0112]) == ((7, 5), 6)  # the given image is left as it was


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
def test_upright_size_is_that_of_the_loaded_image(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(gradient(7, 5), kind, exif=exif)
    assert upright_size(encoded, "x") == load_image(encoded, "x").size == ((7, 5) if orientation < 5 else (5, 7))


@pytest.mark.parametrize("read", [load_image, upright_size])
@pytest.mark.parametrize("source", [Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), np.uint8)])
def test_images_without_pixels_are_refused(read, source):
    with pytest.raises(UnreadableImage, match=f"cannot read image 2: it has 0 x 5 pixels; 1 to {MAX_PIXELS} can be read"):
        read(source, "2")


@pytest.mark.parametrize("read", [load_image, upright_size])
@pytest.mark.parametrize("array", [np.zeros((5, 7), np.uint8), np.zeros((5, 7, 4), np.uint8), np.zeros((5, 7, 3), np.float32)])
def test_other_arrays_are_refused(read, array):
    with pytest.raises(UnreadableImage, match=r"must be uint8 \[height, width, 3\]"):
        read(array, "2")


def bomb(width: int, height: int) -> bytes:
    """The head of a PNG file that claims so many pixels."""
    header = b"IHDR" + struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return PNG[:8] + chunk + PNG[33:]


@pytest.mark.parametrize("read", [load_image, upright_size])
@pytest.mark.parametrize("height", [8948, 20_000])  # more than Pillow warns of, and than it refuses
@pytest.mark.parametrize("warnings", ["ignore", "error"])
def test_decompression_bombs_are_refused(read, height, warnings, recwarn):
    simplefilter(warnings, Image.DecompressionBombWarning)
    assert 10_001 * height > MAX_PIXELS
    with pytest.raises(UnreadableImage, match=r"cannot read image bomb: .* pixels"):
        read(bomb(10_001, height), "bomb")
