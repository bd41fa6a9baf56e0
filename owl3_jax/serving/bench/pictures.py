"""Pictures to show to a server: any number of distinct ones, the same for the same seed."""

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import matplotlib as mpl
import numpy as np
from PIL import Image

from owl3_jax.processing.images import load_image

_MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
_QUALITY = 90  # of JPEG
_SMALLEST_CUT = 0.35  # of the sides of the largest cut that a photograph allows
_TRIMMED = 0.06  # most that is cut off a side of a folder's picture
_STREAM = 1  # keeps random draws apart from those of the workload
_TINT = 0.12  # by how much a colour may be brighter or darker


class Picture(NamedTuple):
    """A picture as a file."""

    content: bytes
    media_type: str


@runtime_checkable
class Pictures(Protocol):
    """Where pictures come from."""

    typical_bytes: int  # of one, for bounding memory

    def get(self, number: int, variant: int) -> Picture:
        """A picture. Other numbers show something else; other variants too, in the same number of pixels."""


class Photographs:
    """Cuts of the photographs that scikit-learn and matplotlib carry, as JPEGs of one size."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        """`size`: width and height in pixels."""
        self._seed, self._size, self._sources = seed, size, _sample_photographs()
        self.typical_bytes = len(self.get(0, 0).content)

    def get(self, number: int, variant: int) -> Picture:
        """As `Pictures`."""
        random = _random(self._seed, variant, number)
        source = self._sources[int(random.integers(len(self._sources)))]
        box = _cut(source.size, self._size, random)
        return _jpeg(source.resize(self._size, Image.Resampling.BICUBIC, box), random, flip=random.random() < 0.5)


class FolderPictures:
    """The pictures of a folder, as they are; when all have been shown, and for other variants, with trimmed edges."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Raises ValueError for a folder without pictures, OSError where it cannot be read."""
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _MEDIA_TYPES and path.is_file())
        if not files:
            raise ValueError(f"{folder} has no pictures ({', '.join(_MEDIA_TYPES)})")
        order = _random(seed, 0, 0).permutation(len(files))
        self._seed, self._files = seed, [files[place] for place in order]
        self.typical_bytes = max(1, round(statistics.mean(file.stat().st_size for file in files)))

    def get(self, number: int, variant: int) -> Picture:
        """As `Pictures`. Raises OSError, and ValueError for a file that is no picture."""
        file = self._files[number % len(self._files)]
        if variant == 0 and number < len(self._files):
            return Picture(file.read_bytes(), _MEDIA_TYPES[file.suffix.lower()])
        random = _random(self._seed, variant, number)
        image = load_image(file, str(file))
        return _jpeg(image.resize(image.size, Image.Resampling.BICUBIC, _trimmed(image.size, random)), random, flip=False)


def _sample_photographs() -> Sequence[Image.Image]:
    from sklearn.datasets import load_sample_images  # takes 3 s; `--images` and `--help` do without

    with Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        return [*(Image.fromarray(pixels) for pixels in load_sample_images().images), portrait.convert("RGB")]


def _random(seed: int, variant: int, number: int) -> np.random.Generator:
    return np.random.default_rng([_STREAM, seed, variant, number])


def _cut(source: tuple[int, int], size: tuple[int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box in a picture, with the proportions of `size`."""
    largest = min(source[0] / size[0], source[1] / size[1])
    scale = largest * random.uniform(_SMALLEST_CUT, 1.0)
    width, height = size[0] * scale, size[1] * scale
    left, top = random.uniform(0, source[0] - width), random.uniform(0, source[1] - height)
    return left, top, min(left + width, source[0]), min(top + height, source[1])


def _trimmed(size: tuple[int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
    left, top, right, bottom = random.uniform(0, _TRIMMED, 4)
    return size[0] * left, size[1] * top, size[0] * (1 - right), size[1] * (1 - bottom)


def _jpeg(image: Image.Image, random: np.random.Generator, *, flip: bool) -> Picture:
    """With colours as under another light, so that a plain wall differs from itself too."""
    gains = random.uniform(1 - _TINT, 1 + _TINT, 3)
    tinted = image.point([min(round(value * gain), 255) for gain in gains.tolist() for value in range(256)])
    file = io.BytesIO()
    (tinted.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else tinted).save(file, "jpeg", quality=_QUALITY)
    return Picture(file.getvalue(), "image/jpeg")
