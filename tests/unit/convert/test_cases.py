"""Cases come back from a file as they were written."""

from pathlib import Path

import numpy as np
import pytest

from owl3_jax.config import ModelConfig, VisionConfig
from owl3_jax.convert.cases import Case, UnreadableCases, check_cases, read_cases, write_cases


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


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_no_file_of_cases_is_named(tmp_path):
    write_cases(tmp_path / "good.npz", [case("a", 3)])
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.ones(2))
    np.savez(tmp_path / "objects.npz", **{"a/input_ids": np.array([{}], object)})
    np.savez(tmp_path / "flat.npz", **{"a/input_ids": np.arange(3), "a/pixel_values": np.ones((3, 5))})
    wrong = {
        tmp_path / "nowhere.npz": "there is no file",
        tmp_path: "there is no file",
        write_bytes(tmp_path / "cut.npz", good[: len(good) // 2]): "cut.npz is not a readable .npz file: ",
        write_bytes(tmp_path / "late.npz", good[:40] + bytes(40) + good[80:]): "late.npz is not a readable .npz file: ",
        write_bytes(tmp_path / "empty.npz", b""): "empty.npz is not a readable .npz file: ",
        write_bytes(tmp_path / "text.npz", b"no arrays"): "text.npz is not a readable .npz file: ",
        tmp_path / "array.npy": "array.npy holds one array; cases are several in a .npz file",
        tmp_path / "objects.npz": "objects.npz is not a readable .npz file: Object arrays cannot be loaded",
        tmp_path / "flat.npz": r"a/pixel_values: shape \(3, 5\); it must be \[I, 3, S, S\]",
    }
    for path, message in wrong.items():
        with pytest.raises(UnreadableCases, match=message):
            read_cases(path, image_size=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": np.zeros(0, np.int32), "image_starts": np.zeros(0, np.int32)}, r"a/input_ids: shape \(0,\)"),
        ({"input_ids": np.array([3, 20], np.int32)}, "a/input_ids: token 20; the model's vocabulary has 20"),
        ({"input_ids": np.array([-1, 3], np.int32)}, "a/input_ids: token "),
        ({"input_ids": np.zeros(65, np.int32)}, "a/input_ids: 65 tokens; the model has 64 positions"),
        ({"image_starts": np.array([0, 1], np.int32)}, r"a/pixel_values: shape \[3, 3, 5, 5\]; it must be \[2, 3, 5, 5\]"),
        ({"pixel_values": np.zeros((3, 6, 6, 3), np.float32)}, r"shape \[3, 3, 6, 6\]; it must be \[3, 3, 5, 5\]"),
        (
            {"image_starts": np.array([0, 1, 7], np.int32)},
            r"media_starts: \[0, 1, 7\]; they must ascend, within the 7",
        ),
        ({"image_starts": np.array([2, 2, 3], np.int32)}, "a/media_starts: "),
        ({"image_starts": np.array([-1, 2, 3], np.int32)}, "a/media_starts: "),
    ],
)
def test_a_case_of_another_model_is_named(changes, message):
    config = ModelConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hyper_layers=(1,),
        max_position_embeddings=64, vision=VisionConfig(image_size=5, patch_size=2),
    )  # fmt: skip
    check_cases([case("a", 3)], config)
    with pytest.raises(UnreadableCases, match=message):
        check_cases([case("b", 0), case("a", 3)._replace(**changes)], config)
