"""Padding and packing, against arrays written by hand."""

import numpy as np
import pytest

from owl3_jax.processing.batch import pack_batch, pad_batch
from owl3_jax.processing.processor import Sample

SIZE = 2


def sample(ids: list[int], starts: list[int], targets: int, colour: int = 0) -> Sample:
    """A sample whose last `targets` tokens bear loss and whose images are `colour`, `colour + 1`, ..."""
    pixels = np.arange(colour, colour + len(starts), dtype=np.uint8)[:, None, None, None]
    return Sample(
        input_ids=np.array(ids, np.int32),
        image_starts=np.array(starts, np.int32),
        pixel_values=np.broadcast_to(pixels, (len(starts), SIZE, SIZE, 3)),
        labels=np.arange(len(ids)) >= len(ids) - targets,
    )


A = sample([11, 12, 13], [1], targets=1, colour=50)
B = sample([21, 22], [], targets=2)
C = sample([31, 32], [0, 1], targets=1, colour=60)


def test_packed_rows():
    batch = pack_batch([[A, B, C], []], tokens_per_row=11, images_per_row=5, image_size=SIZE)
    assert batch.tokens.tolist() == [[11, 12, 13, 21, 22, 31, 32, 0, 0, 0, 0], [0] * 11]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 0, 0, 0, 0], [0] * 11]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0], [0] * 11]
    assert batch.loss_weights.tolist() == [[0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0], [0] * 11]
    assert batch.image_positions.tolist() == [[1, 0, 1, 0, 0], [0] * 5]
    assert batch.image_segment_ids.tolist() == [[1, 3, 3, 0, 0], [0] * 5]
    assert batch.pixels[:, :, 0, 0, 0].tolist() == [[50, 60, 61, 0, 0], [0] * 5]


def test_padded_rows():
    batch = pad_batch([A, B], tokens_per_row=5, images_per_row=3, image_size=SIZE)
    assert batch.tokens.tolist() == [[11, 12, 13, 0, 0], [21, 22, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert batch.image_segment_ids.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_shapes_and_types():
    batch = pad_batch([A, B, C], tokens_per_row=7, images_per_row=5, image_size=SIZE)
    arrays = batch._asdict()
    assert arrays.pop("source_ids") is None
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "tokens": ((3, 7), np.int32),
        "positions": ((3, 7), np.int32),
        "segment_ids": ((3, 7), np.int32),
        "pixels": ((3, 5, SIZE, SIZE, 3), np.uint8),
        "image_positions": ((3, 5), np.int32),
        "image_segment_ids": ((3, 5), np.int32),
        "loss_weights": ((3, 7), np.float32),
    }


@pytest.mark.parametrize(
    ("tokens", "images", "size", "complaint"),
    [
        (4, 5, SIZE, "sample 1 of row 0 has 2 tokens, 1 are left in its row; raise tokens_per_row"),
        (7, 2, SIZE, "sample 1 of row 0 has 2 images, 1 are left in its row; raise images_per_row"),
        (7, 5, 3, r"sample 0 of row 0 has pixel_values \(1, 2, 2, 3\), not \[I, 3, 3, 3\]"),
    ],
)
def test_what_does_not_fit_is_named(tokens, images, size, complaint):
    with pytest.raises(ValueError, match=complaint):
        pack_batch([[A, C]], tokens_per_row=tokens, images_per_row=images, image_size=size)
