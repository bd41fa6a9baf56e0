"""The pictures and their split."""

import hashlib
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from owl3_jax.data.digits.images import COLOURS, IMAGE_SIZE, TEST_IMAGES, digit_image, encoded_image, split_ids


def test_the_splits_share_no_image_and_leave_none_out():
    train, test = split_ids("train"), split_ids("test")
    assert len(test) == TEST_IMAGES == 359
    assert sorted([*train, *test]) == list(range(1797))


def test_no_two_pictures_are_equal():
    """Else a test picture could be trained on under another id."""
    assert len({picture.tobytes() for picture in load_digits().images}) == 1797


def test_the_split_never_changes():
    """Prepared data and published scores belong to this very split."""
    assert hashlib.sha256(split_ids("test").astype("<i8").tobytes()).hexdigest()[:16] == "efcb22ec4da0ff2e"


def test_every_digit_is_held_out_in_proportion():
    held_out = np.bincount([digit_image(image_id, "red").digit for image_id in split_ids("test").tolist()])
    assert set(held_out) <= {35, 36, 37}


def test_a_tinted_picture_is_grey_level_times_colour():
    for colour, tint in COLOURS.items():
        image = digit_image(17, colour)
        pixels = np.asarray(Image.open(io.BytesIO(encoded_image(image))))
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        grey = load_digits().images[17]
        np.testing.assert_allclose(pixels, grey[:, :, None] / 16 * np.array(tint), atol=0.5)
        assert image.digit == load_digits().target[17]


def test_colours_are_far_apart():
    tints = np.array(list(COLOURS.values()), np.float64)
    distances = np.linalg.norm(tints[:, None] - tints[None], axis=-1)
    assert distances[~np.eye(len(tints), dtype=bool)].min() > 100
