"""Samples to the one batch form, as numpy arrays: padded (a sample a row) or packed (several)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError
from owl3_jax.processing.processor import Sample


def pad_batch(samples: Sequence[Sample], *, tokens_per_row: int, images_per_row: int, image_size: int) -> Batch:
    """One sample per row, padded on the right; see `pack_batch`."""
    rows = [[sample] for sample in samples]
    return pack_batch(rows, tokens_per_row=tokens_per_row, images_per_row=images_per_row, image_size=image_size)


def pack_batch(rows: Sequence[Sequence[Sample]], *, tokens_per_row: int, images_per_row: int, image_size: int) -> Batch:
    """Writes the samples of each row one after the other.

    The caller chooses which samples share a row; in training a lane does (`owl3_jax.data.lanes`).

    Args:
        rows: the samples of each row; a row may be empty.
        tokens_per_row: T.
        images_per_row: I.
        image_size: S, pixels.

    Returns:
        Batch of numpy arrays with B = len(rows).

    Raises:
        ValueError: a row's samples have too many tokens or images, or images of another size. It names the row and sample.
    """
    arrays = _empty_arrays(len(rows), tokens_per_row, images_per_row, image_size)
    for row, samples in enumerate(rows):
        token, image = 0, 0
        for segment, sample in enumerate(samples, start=1):
            name = f"sample {segment - 1} of row {row}"
            check_fits(sample, tokens_per_row - token, images_per_row - image, name=name)
            _check_image_size(sample, image_size, name)
            _write_sample(arrays, sample, row, segment, token, image)
            token += len(sample.input_ids)
            image += len(sample.image_starts)
    return Batch(**arrays)


def check_fits(sample: Sample, tokens: int, images: int, *, name: str) -> None:
    """Raises ConfigError when `sample`, called `name`, needs more than the `tokens` and `images` that are left."""
    if len(sample.input_ids) > tokens:
        raise ConfigError(f"{name} has {len(sample.input_ids)} tokens, {tokens} are left in its row; raise tokens_per_row")
    if len(sample.image_starts) > images:
        raise ConfigError(f"{name} has {len(sample.image_starts)} images, {images} are left in its row; raise images_per_row")


def _check_image_size(sample: Sample, image_size: int, name: str) -> None:
    if sample.pixel_values.shape[1:] != (image_size, image_size, 3):
        raise ValueError(f"{name} has pixel_values {sample.pixel_values.shape}, not [I, {image_size}, {image_size}, 3]")


def _empty_arrays(rows: int, tokens: int, images: int, image_size: int) -> dict[str, Shaped[np.ndarray, "B ..."]]:
    return {
        "tokens": np.zeros((rows, tokens), np.int32),
        "positions": np.zeros((rows, tokens), np.int32),
        "segment_ids": np.zeros((rows, tokens), np.int32),
        "pixels": np.zeros((rows, images, image_size, image_size, 3), np.uint8),
        "image_positions": np.zeros((rows, images), np.int32),
        "image_segment_ids": np.zeros((rows, images), np.int32),
        "loss_weights": np.zeros((rows, tokens), np.float32),
    }


def _write_sample(
    arrays: dict[str, Shaped[np.ndarray, "B ..."]], sample: Sample, row: int, segment: int, token: int, image: int
) -> None:
    text = slice(token, token + len(sample.input_ids))
    arrays["tokens"][row, text] = sample.input_ids
    arrays["positions"][row, text] = np.arange(len(sample.input_ids))
    arrays["segment_ids"][row, text] = segment
    arrays["loss_weights"][row, text] = sample.labels
    pictures = slice(image, image + len(sample.image_starts))
    arrays["pixels"][row, pictures] = sample.pixel_values
    arrays["image_positions"][row, pictures] = sample.image_starts
    arrays["image_segment_ids"][row, pictures] = segment
