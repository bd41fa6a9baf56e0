"""Decoding, conversion to RGB and squashing of images."""

import base64
import hashlib
import io
import struct
import subprocess
import zlib
from warnings import simplefilter

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from owl3_jax.processing.images import (
    MAX_PIXELS,
    TooManyPixels,
    UnreadableImage,
    check_header,
    limit_pixels,
    load_image,
    squash,
    upright_size,
)
from tests.tolerances import DRAFT_LEVELS, DRAFT_MEAN


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


def exif_bytes(*entries: tuple[int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, value of at most four bytes), which Pillow's own writer would refuse."""
    packed = [
        struct.pack("<HHI", tag, kind, len(value) // {2: 1, 3: 2, 4: 4}[kind]) + value.ljust(4, b"\0")
        for tag, kind, value in entries
    ]
    directory = struct.pack("<H", len(packed)) + b"".join(packed) + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory


ASCII, SHORT = 2, 3
ORIENTATION, X_RESOLUTION = 0x0112, 0x011A


def turned(array: np.ndarray) -> np.ndarray:
    """What a viewer shows of a picture with orientation 6."""
    return np.rot90(array, k=-1)


def test_a_damaged_tag_beside_the_orientation_does_not_matter():
    exif = exif_bytes((ORIENTATION, SHORT, struct.pack("<H", 6)), (X_RESOLUTION, ASCII, b"72\0"))
    encoded = encode(gradient(7, 5), "jpeg", exif=exif, quality=95)
    stored = np.asarray(Image.open(io.BytesIO(encode(gradient(7, 5), "jpeg", quality=95))))
    np.testing.assert_array_equal(np.asarray(load_image(encoded, "camera")), turned(stored))
    assert upright_size(encoded, "camera") == (5, 7)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, on damaged metadata
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0not EXIF", b"Exif\0\0II*\0\xff\xff\xff\xff", exif_bytes((ORIENTATION, ASCII, b"6\0"))]
)
def test_exif_that_cannot_be_read_is_ignored(kind, exif):
    shown = encode(gradient(16, 8), kind)
    encoded = encode(gradient(16, 8), kind, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(encoded, "x")), np.asarray(load_image(shown, "x")))
    assert upright_size(encoded, "x") == (16, 8)


@pytest.mark.parametrize("orientation", [0, 9, 60_000])
def test_orientations_that_do_not_exist_are_ignored(orientation):
    encoded = encode(gradient(7, 5), exif=exif_bytes((ORIENTATION, SHORT, struct.pack("<H", orientation))))
    np.testing.assert_array_equal(np.asarray(load_image(encoded, "x")), np.asarray(gradient(7, 5)))


class PluginError(Exception):
    """What a plugin raises that knows nothing of Pillow's errors."""


@pytest.mark.parametrize("read", [load_image, upright_size])
@pytest.mark.parametrize(
    "error", [PluginError("no decoder"), RuntimeError("codec"), NotImplementedError("DXT9"), KeyError(7), MemoryError()]
)
def test_whatever_a_plugin_raises_is_an_unreadable_image(read, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UnreadableImage, match="cannot read image 3: "):
        read(PNG, "3")


def test_a_closed_and_a_cut_image_are_named():
    closed = Image.open(io.BytesIO(PNG))
    closed.close()
    cut = Image.open(io.BytesIO(PNG[:-30]))
    for image in (closed, cut):
        with pytest.raises(UnreadableImage, match="cannot read image 3: "):
            load_image(image, "3")


class ForeignArray:
    """An array of a library that this project does not import."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._array


@pytest.mark.parametrize("wrap", [bytearray, memoryview])
def test_other_kinds_of_bytes_are_encoded_images(wrap):
    np.testing.assert_array_equal(np.asarray(load_image(wrap(PNG), "a")), np.asarray(gradient(7, 5)))


def test_arrays_of_other_libraries_and_uris_are_images(tmp_path):
    (tmp_path / "a b.png").write_bytes(PNG)
    sources = [
        ForeignArray(np.asarray(gradient(7, 5))),
        jnp.asarray(np.asarray(gradient(7, 5))),
        torch.from_numpy(np.array(gradient(7, 5))),
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        (tmp_path / "a b.png").as_uri(),
    ]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(load_image(source, "a")), np.asarray(gradient(7, 5)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "it is None; an image is a path, encoded bytes"),
        ({"bytes": b""}, "it is a dict; an image is"),
        ([1, 2], "it is a list; an image is"),
        (3, "it is an int; an image is"),
        (b"", "it has no bytes"),
        ("", "its path is empty"),
        ("https://example.org/a.png", "files on the web are not fetched"),
        ("data:image/png;base64,?", "not valid base64"),
        (np.zeros((5, 7, 3), np.float32), r"float32 \(5, 7, 3\).*values from 0 to 1: \(array \* 255\)"),
        (np.zeros((3, 5, 7), np.uint8), r"uint8 \(3, 5, 7\).*put the channels last: array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 5, 7, 3), np.uint8), "give each image of the batch by itself"),
        (np.zeros((5, 7), np.uint8), "give a Pillow image"),
        (np.float32(1), r"its array is float32 \(\)"),
    ],
)
@pytest.mark.parametrize("read", [load_image, upright_size])
def test_what_is_no_image_gets_a_sentence(read, source, message):
    with pytest.raises(UnreadableImage, match=f"^cannot read image 3: .*{message}"):
        read(source, "3")


@pytest.mark.parametrize("read", [load_image, upright_size])
def test_long_sources_are_not_repeated(read):
    for source in ("data:image/png;base64," + "A" * 10**6, "a" * 10**5, b"x" * 10**5):
        with pytest.raises(UnreadableImage) as caught:
            read(source, "3")
        assert len(str(caught.value)) < 200


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


@pytest.mark.parametrize("damaged", [b"", b"not an image", PNG[:20], PNG[:-30], PNG.replace(b"IDAT", b"IDAX")])
def test_a_damaged_image_is_named(damaged):
    with pytest.raises(UnreadableImage, match="cannot read image 3 of web/train"):
        load_image(damaged, "3 of web/train")


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize(
    "content, message",
    [(b"", "it has no bytes"), (b"<!DOCTYPE html><html>", "Pillow knows no such format.*begins with b'<!DOCTYPE html>")],
)
def test_a_file_of_another_kind_shows_how_it_begins(content, message, as_path, tmp_path):
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"cannot read image cat: {message}") as raised:
        load_image(path if as_path else content, "cat")
    assert "BytesIO" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImage, match=r"cannot read image cat: .*nowhere\.png"):
        load_image(tmp_path / "nowhere.png", "cat")


@pytest.mark.parametrize("read", [load_image, upright_size])
def test_eps_is_refused_since_pillow_would_run_it(read, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(UnreadableImage, match="cannot read image logo: EPS files are programs, which are not run; convert it"):
        read(encode(gradient(7, 5), "eps"), "logo")


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


@pytest.mark.parametrize("read", [load_image, upright_size, check_header])
@pytest.mark.parametrize("height", [8948, 20_000])  # more than Pillow warns of, and than it refuses
@pytest.mark.parametrize("warnings", ["ignore", "error"])
def test_decompression_bombs_are_refused(read, height, warnings, recwarn):
    simplefilter(warnings, Image.DecompressionBombWarning)
    assert 10_001 * height > MAX_PIXELS
    with pytest.raises(UnreadableImage, match=r"cannot read image bomb: .* pixels"):
        read(bomb(10_001, height), "bomb")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("read", [load_image, upright_size, check_header])
def test_the_limit_of_pixels_can_be_set(read):
    encoded = encode(gradient(7, 5))
    try:
        limit_pixels(35)
        read(encoded, "0")
        limit_pixels(34)
        with pytest.raises(UnreadableImage, match="cannot read image 0: it has 7 x 5 pixels; 1 to 34 can be read") as caught:
            read(encoded, "0")
    finally:
        limit_pixels(MAX_PIXELS)
    assert isinstance(caught.value.__cause__, TooManyPixels)
    read(encoded, "0")


def test_a_header_is_checked_without_its_pixels():
    encoded = encode(gradient(64, 64))[:60]
    check_header(encoded, "0")
    with pytest.raises(UnreadableImage):
        load_image(encoded, "0")


ROTATED = exif_bytes((ORIENTATION, SHORT, struct.pack("<H", 6)))  # a viewer shows it turned by 90 degrees


def photograph_file(width: int, height: int, kind: str = "jpeg", **options) -> bytes:
    (photograph, _) = load_sample_images().images
    return encode(Image.fromarray(photograph).resize((width, height)), kind, **options)


def test_a_draft_has_the_whole_files_pixels_within_the_stated_bound():
    encoded = photograph_file(640, 427, quality=90)  # its own size
    draft = load_image(encoded, "photograph", draft=(106, 106))
    assert draft.size == (320, 214)
    difference = np.abs(squash(draft, 106).astype(int) - squash(load_image(encoded, "photograph"), 106))
    assert np.quantile(difference, 0.99) <= DRAFT_LEVELS and 0 < difference.mean() <= DRAFT_MEAN


@pytest.mark.parametrize(
    ("encoded", "target"),
    [
        (photograph_file(1600, 1200), (401, 300)),  # two drafts' pixels, less one
        (photograph_file(1600, 1200, "png"), (20, 20)),
        (photograph_file(1600, 1200, exif=ROTATED), (400, 301)),
    ],
    ids=["small", "png", "turned"],
)
def test_other_files_are_decoded_whole(encoded, target):
    whole = load_image(encoded, "photograph")
    np.testing.assert_array_equal(load_image(encoded, "photograph", draft=target), whole)


def test_a_draft_of_a_turned_file_is_upright():
    rotated = photograph_file(1600, 1200, exif=ROTATED)
    assert load_image(rotated, "photograph", draft=(300, 400)).size == (600, 800)


def damaged(encoded: bytes, rng: np.random.Generator) -> bytes:
    """The file cut off, with bytes changed, or with bytes missing."""
    place = int(rng.integers(2, len(encoded)))
    changed = bytearray(encoded)
    changed[place] ^= 0xFF
    return [encoded[:place], bytes(changed), encoded[:place] + encoded[place + 40 :]][rng.integers(3)]


def outcome(encoded: bytes, draft: tuple[int, int] | None) -> str:
    try:
        load_image(encoded, "photograph", draft)
    except UnreadableImage as error:
        return str(error)
    return "read"


def test_a_draft_of_a_damaged_file_is_refused_when_the_whole_is():
    """`owl3 data check` relies on it."""
    rng = np.random.default_rng(0)
    kinds = [photograph_file(60 + 8 * n, 80, progressive=n % 3 == 0, subsampling=n % 3, quality=50 + 9 * n) for n in range(5)]
    files = [damaged(kinds[n % 5], rng) for n in range(300)]
    whole, draft = ([outcome(file, target) for file in files] for target in (None, (1, 1)))
    assert draft == whole
    assert 60 < whole.count("read") < 240
