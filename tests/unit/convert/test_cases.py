"""Cases come back from a file as they were written."""

import numpy as np
import pytest

from owl3_jax.convert.cases import Case, read_cases, write_cases


def case(name: str, images: int, **expected: np.ndarray) -> Case:
    rng = np.random.default_rng(images)
    pixels = rng.uniform(-1, 1, (images, 5, 5, 3)).astype(np.float32)
    return Case(name, rng.integers(0, 9, 7, np.int32), np.arange(images, dtype=np.int32), pixels, expected)


def test_written_and_read(tmp_path):
    cases = [case("a", 3, logits=np.ones((7, 2), np.float32), greedy=np.arange(4)), case("b", 0)]
    write_cases(tmp_path / "cases.npz", cases)
    for ours, read in zip(cases, read_cases(tmp_path / "cases.npz", image_size=5), strict=True):
        assert read.name == ours.name and read.expected.keys() == ours.expected.keys()
        for one, other in zip((*ours[1:4], *ours.expected.values()), (*read[1:4], *read.expected.values()), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_a_file_without_cases_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.ones(2))
    with pytest.raises(ValueError, match=r"other\.npz holds no case: .* it has weights"):
        read_cases(tmp_path / "other.npz", image_size=5)
