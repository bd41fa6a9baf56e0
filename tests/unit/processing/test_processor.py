"""Messages and images to samples, with the tiny word tokenizer."""

import copy

import numpy as np
import pytest
from PIL import Image

from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.processor import Processor

SIZE = 11
MESSAGES = [{"role": "user", "content": "<|image|><|image|>\nWhich digit is red?"}, {"role": "assistant", "content": "red 7"}]


@pytest.fixture
def processor() -> Processor:
    return Processor(make_tokenizer(), SIZE)


def images() -> list[Image.Image]:
    return [Image.new("RGB", (7, 5), (10, 20, 30)), Image.new("L", (3, 13), 40)]


def test_a_training_sample_is_complete(processor):
    sample = processor(MESSAGES, images(), training=True)
    assert sample.input_ids.dtype == np.int32
    assert sample.input_ids.shape == sample.labels.shape
    assert processor.tokenizer.decode(sample.input_ids[sample.labels]) == "red 7"
    placeholder = processor.tokenizer.token_id("<|image|>")
    assert sample.image_starts.tolist() == np.flatnonzero(sample.input_ids == placeholder).tolist() == [8, 9]
    assert (sample.pixel_values.shape, sample.pixel_values.dtype) == ((2, SIZE, SIZE, 3), np.uint8)
    assert (sample.pixel_values == np.array([[10, 20, 30], [40, 40, 40]])[:, None, None]).all()


def test_a_prompt_ends_where_the_answer_begins(processor):
    training = processor(MESSAGES, images(), training=True)
    for messages in (MESSAGES, MESSAGES[:1]):
        prompt = processor(messages, images())
        assert not prompt.labels.any()
        answer = np.flatnonzero(training.labels)[0]
        np.testing.assert_array_equal(prompt.input_ids, training.input_ids[:answer])


def test_text_alone_has_no_pixels(processor):
    sample = processor([{"role": "user", "content": "How many images?"}], [])
    assert (sample.pixel_values.shape, sample.pixel_values.dtype) == ((0, SIZE, SIZE, 3), np.uint8)
    assert sample.image_starts.shape == (0,)


def test_input_is_not_changed_and_a_second_call_is_equal(processor):
    messages, pictures = copy.deepcopy(MESSAGES), images()
    first, second = processor(messages, pictures), processor(messages, pictures)
    assert messages == MESSAGES
    assert all(picture.tobytes() == original.tobytes() for picture, original in zip(pictures, images(), strict=True))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_image_and_placeholder_counts_must_agree(processor, given):
    pictures = (images() + images())[:given]
    with pytest.raises(ValueError, match=rf"the messages have 2 <\|image\|> placeholders, but {given} images were given"):
        processor(MESSAGES, pictures)
