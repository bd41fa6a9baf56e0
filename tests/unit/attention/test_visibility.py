import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.visibility import visibility


def ints(*rows: str) -> jax.Array:
    return jnp.array([[int(cell) for cell in row.split()] for row in rows], jnp.int32)


def seen(mask: jax.Array) -> list[str]:
    return ["".join("01"[int(cell)] for cell in row) for row in np.asarray(mask)]


def test_text_of_packed_and_padded_row():
    positions, segments = ints("0 1 0 1 2 0"), ints("1 1 2 2 2 0")
    visible = visibility(positions, segments, positions, segments)
    assert seen(visible.dense()[0]) == ["100000", "110000", "001000", "001100", "001110", "000000"]
    assert visible.limits.tolist() == [[1, 2, 3, 4, 5, 0]]


def test_new_text_over_a_cache_with_gaps():
    # A prompt of two tokens, padded to four slots, then two generated ones: the gap is never seen.
    key_positions, key_segments = ints("0 1 0 0 2 3"), ints("1 1 0 0 1 1")
    visible = visibility(ints("2 3"), ints("1 1"), key_positions, key_segments)
    assert seen(visible.dense()[0]) == ["110010", "110011"]


@pytest.mark.parametrize(
    ("inclusive", "rows"),
    [
        (False, ["00", "00", "10", "10", "11"]),
        (True, ["00", "10", "10", "11", "11"]),
    ],
)
def test_images_are_strict_or_inclusive(inclusive, rows):
    visible = visibility(ints("0 1 2 3 4"), ints("1 1 1 1 1"), ints("1 3"), ints("1 1"), inclusive=inclusive)
    assert seen(visible.dense()[0]) == rows


def packed_images():
    """Two samples: one with images at 0 and 1, a text-only one, one with an image at 0; then padding of text and images."""
    positions, segments = ints("0 1 2 0 1 0 1 0"), ints("1 1 1 2 2 3 3 0")
    return visibility(positions, segments, ints("0 1 0 0"), ints("1 1 3 0"), inclusive=False)


def test_images_of_packed_and_padded_row():
    visible = packed_images()
    assert seen(visible.dense()[0]) == ["0000", "1000", "1100", "0000", "0000", "0000", "0010", "0000"]
    assert visible.sees.tolist() == [[False, True, True, False, False, False, True, False]]


def test_repeated_images_and_a_part_of_them():
    visible, dense = packed_images(), packed_images().dense()
    np.testing.assert_array_equal(visible.over_tokens(3 * visible.keys).dense(), jnp.repeat(dense, 3, axis=2))
    np.testing.assert_array_equal(visible.dense(3 * visible.keys), jnp.repeat(dense, 3, axis=2))
    np.testing.assert_array_equal(visible.part(1, 3).dense(), dense[:, :, 1:])
    np.testing.assert_array_equal(visible.part(1, 3, first=2).dense(), dense[:, :, 1:].at[:, :, 0].set(False))


def test_no_images():
    none = jnp.zeros((1, 0), jnp.int32)
    assert visibility(ints("0 1"), ints("1 1"), none, none).sees.tolist() == [[False, False]]
