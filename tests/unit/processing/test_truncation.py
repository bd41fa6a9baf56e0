"""Shortening of samples: at the end of an answer, or within the first one; never within a question."""

import numpy as np
import pytest

from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.processor import Processor
from tests.unit.processing.test_images import gradient

PROCESSOR = Processor(make_tokenizer(), 8)
END = PROCESSOR.tokenizer.stop_ids[-1]
MESSAGES = [
    {"role": "user", "content": "<|image|> digit"},
    {"role": "assistant", "content": "1 1 1 1"},
    {"role": "user", "content": "<|video|> <|image|> digit"},
    {"role": "assistant", "content": "2 2"},
    {"role": "user", "content": "digit"},
    {"role": "assistant", "content": "3"},
]


def prepared(messages=MESSAGES, **loss):
    given = [{**message, **loss.get(f"m{index}", {})} for index, message in enumerate(messages)]
    images, video = [gradient(9, 9), gradient(10, 9)], [gradient(8, 8)] * 3
    count = sum(message["content"].count("<|image|>") for message in messages)
    videos = [video] * sum(message["content"].count("<|video|>") for message in messages)
    return PROCESSOR.prepare(given, images[:count], videos, training=True)


@pytest.mark.parametrize("tokens", range(3, 70))
@pytest.mark.parametrize("images", range(6))
def test_what_is_left_is_a_beginning_that_fits(tokens, images):
    whole = prepared()
    ends = [0, *(np.flatnonzero(whole.input_ids == END) + 1)]
    first = int(np.argmax(whole.labels))
    cut = whole.truncated(tokens, images, END)
    if cut is None:
        assert tokens <= first or images < 1
        return
    length = len(cut.input_ids)
    assert length <= tokens and cut.num_images <= images and cut.labels.any()
    np.testing.assert_array_equal(cut.input_ids, whole.input_ids[:length])
    np.testing.assert_array_equal(cut.labels, whole.labels[:length])
    assert length in ends or first < length < ends[1]
    longer = [end for end in ends if end > length and end <= tokens and np.sum(whole.image_starts < end) <= images]
    assert not longer  # nothing longer would have fitted
    sample, original = cut.read(), whole.read()
    np.testing.assert_array_equal(sample.pixel_values, original.pixel_values[: cut.num_images])
    np.testing.assert_array_equal(sample.image_starts, original.image_starts[: cut.num_images])


def test_an_answer_without_loss_is_not_worth_keeping():
    whole = prepared(m1={"loss": False})
    assert not whole.labels[: int(np.flatnonzero(whole.input_ids == END)[0]) + 1].any()
    assert whole.truncated(int(np.flatnonzero(whole.input_ids == END)[0]) + 3, 9, END) is None
    assert whole.truncated(len(whole.input_ids), 9, END).num_images == whole.num_images
