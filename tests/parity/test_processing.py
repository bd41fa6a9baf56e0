"""The official processor of 7B-240728, case by case: ids, starts, visible images and every pixel."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.processing.crops import GRIDS, grid_scores
from owl3_jax.processing.processor import Processor, Sample
from tests.qwen import chat_tokenizer

CASES = {case["name"]: case for case in json.loads((Path(__file__).parents[1] / "golden/processing-240728.json").read_text())}
NO_IMAGE = -1_000_000  # what the official code writes for every token of a text without images


def gradient(width: int, height: int) -> Image.Image:
    """pixel[y, x, c] = (3x + 5y + 70c) mod 256, the picture of every case."""
    y, x, c = np.meshgrid(range(height), range(width), range(3), indexing="ij")
    return Image.fromarray(((3 * x + 5 * y + 70 * c) % 256).astype(np.uint8))


def process(case: dict, messages: list[dict]) -> Sample:
    processor = Processor(chat_tokenizer(), case["image_size"])
    images = [gradient(*size) for size in case["images"]]
    videos = [[gradient(*size) for size in video] for video in case["videos"]]
    return processor(messages, images, videos, crop=case["crop"])


def visible_images(sample: Sample) -> list[int]:
    """Images whose placeholder starts before each token."""
    positions = np.arange(len(sample.input_ids))
    return (positions[:, None] > sample.image_starts).sum(1).tolist()


def check(sample: Sample, case: dict) -> None:
    assert sample.input_ids.tolist() == case["input_ids"]
    assert chat_tokenizer().decode(sample.input_ids, skip_special_tokens=False) == case["text"]
    assert sample.image_starts.tolist() == case.get("media_starts", [])
    expected = [0 if count == NO_IMAGE else count for count in case["visible_images"]]
    assert visible_images(sample) == expected
    if "pixel_values" not in case:
        assert len(sample.pixel_values) == 0
        return
    pixels = sample.pixel_values.transpose(0, 3, 1, 2)
    assert list(pixels.shape) == case["pixel_values"]["shape"]
    assert pixels.sum((1, 2, 3)).tolist() == case["pixel_values"]["uint8_sum_per_view"]
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["pixel_values"]["sha256_uint8_nchw"]


@pytest.mark.parametrize("name", CASES)
def test_messages_as_given(name):
    case = CASES[name]
    assert case["messages"][-1] == {"role": "assistant", "content": ""}  # the official way to ask for an answer
    check(process(case, case["messages"]), case)


@pytest.mark.parametrize("name", CASES)
def test_messages_that_end_with_the_question(name):
    check(process(CASES[name], CASES[name]["messages"][:-1]), CASES[name])


def torch_scores(width: int, height: int, size: int) -> torch.Tensor:
    """The scores with the official dtypes: boxes are int64, what is divided becomes float32."""
    heights, widths = (torch.tensor(GRIDS) * size).T
    scaled = widths.clone()
    scaled[:] = height / width * widths  # cut to an integer by the assignment

    def overlap(w: int | torch.Tensor, h: int | torch.Tensor) -> torch.Tensor:
        common = torch.minimum(widths, torch.as_tensor(w)) * torch.minimum(heights, torch.as_tensor(h))
        return common / (widths * heights + w * h - common + 1e-5)

    return 100 * overlap(widths, scaled) + overlap(width, height)


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 9000), height=st.integers(1, 9000), size=st.sampled_from([56, 378, 384]))
def test_scores_are_torchs_bit_by_bit(width, height, size):
    np.testing.assert_array_equal(grid_scores(width, height, size), torch_scores(width, height, size).numpy())
