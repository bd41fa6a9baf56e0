"""scikit-learn's 1797 real handwritten digits (8x8, 16 levels), split by image and tinted in one of eight colours."""

import functools
import io
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image

Split = Literal["train", "test"]

IMAGE_SIZE = 8  # pixels
NUM_IMAGES = 1797
TEST_IMAGES = 359  # a fifth; no sample of the train split shows any of them
SPLIT_SEED = 0
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 32, 32),
    "green": (32, 224, 32),
    "blue": (48, 80, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "white": (255, 255, 255),
}
_BRIGHTEST = 16  # of the original grey levels


class DigitImage(NamedTuple):
    """One picture: which of the 1797, what it shows, and its tint."""

    image_id: int
    digit: int
    colour: str


@functools.cache
def split_ids(split: Split) -> Int64[np.ndarray, " n"]:
    """Image ids of a split: 1438 to train, 359 held out, each digit in the same proportion."""
    from sklearn.model_selection import train_test_split  # takes 2 s; most processes read what was built before

    labels = _digits()[1]
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=SPLIT_SEED)
    ids = np.sort(train if split == "train" else test)
    ids.setflags(write=False)  # the array is shared by all callers
    return ids


def digit_image(image_id: int, colour: str) -> DigitImage:
    """The picture `image_id` in `colour`."""
    return DigitImage(image_id, int(_digits()[1][image_id]), colour)


@functools.cache
def encoded_image(image: DigitImage) -> bytes:
    """PNG of `image`, 8x8 RGB on black."""
    grey = _digits()[0][image.image_id] / _BRIGHTEST
    pixels = np.rint(grey[:, :, None] * np.array(COLOURS[image.colour])).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@functools.cache
def _digits() -> tuple[Float64[np.ndarray, "1797 8 8"], Int64[np.ndarray, " 1797"]]:
    """Grey levels from 0 to 16, and labels."""
    from sklearn.datasets import load_digits  # see `split_ids`

    digits = load_digits()
    return digits.images, digits.target
