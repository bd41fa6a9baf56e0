"""The loss mask of every layout of messages, against one that is written by hand; and what must never bear loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.batch import pack_batch
from owl3_jax.processing.chat import IMAGE, Message
from owl3_jax.processing.processor import Processor, Sample

TOKENIZER = make_tokenizer()
PROCESSOR = {style: Processor(TOKENIZER, 8, style) for style in ("chatml", "plain")}
PICTURE = Image.new("RGB", (8, 8), "red")
WORDS = "red 7"  # two tokens


def sample_of(messages: list[Message], style: str = "chatml") -> Sample:
    images = sum(message["content"].count(IMAGE) for message in messages)
    return PROCESSOR[style](messages, [PICTURE] * images, training=True)


def user(content: str = WORDS) -> Message:
    return {"role": "user", "content": content}


def answer(content: str = WORDS, **loss: bool) -> Message:
    return {"role": "assistant", "content": content, **loss}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


# Tokens of the digits vocabulary: a word, a digit, a mark, a newline and a marker are one each.
SYSTEM, TEXT = [0, 0, 0, 0], [0, 0]  # <|im_start|> system ⏎ <|im_end|>; two words
ASKED = [0, 0, 0, 0, *TEXT, 0]  # ⏎ <|im_start|> user ⏎ red 7 <|im_end|>
GIVEN = [0, 0, 0, 0]  # ⏎ <|im_start|> assistant ⏎
ANSWERED, SPARED = [1, 1, 1, 1], [0, 0, 0, 0]  # red 7 <|im_end|> <|endoftext|>


@pytest.mark.parametrize(
    ("messages", "mask"),
    [
        ([user(), answer()], [*SYSTEM, *ASKED, *GIVEN, *ANSWERED]),
        ([system(""), user(), answer()], [*SYSTEM, *ASKED, *GIVEN, *ANSWERED]),
        ([system(WORDS), user(), answer()], [0, 0, 0, *TEXT, 0, *ASKED, *GIVEN, *ANSWERED]),
        ([user(), answer(), user(), answer()], [*SYSTEM, *ASKED, *GIVEN, *ANSWERED, *ASKED, *GIVEN, *ANSWERED]),
        (
            [user(), answer(loss=False), user(), answer(loss=True)],
            [*SYSTEM, *ASKED, *GIVEN, *SPARED, *ASKED, *GIVEN, *ANSWERED],
        ),
        ([user(f"{IMAGE}{WORDS}"), answer()], [*SYSTEM, 0, *ASKED, *GIVEN, *ANSWERED]),
        ([user(f"red {IMAGE} {IMAGE} 7"), answer()], [*SYSTEM, 0, 0, *ASKED, *GIVEN, *ANSWERED]),
        ([user(), answer("red")], [*SYSTEM, *ASKED, *GIVEN, 1, 1, 1]),
        ([user(), answer("\nred")], [*SYSTEM, *ASKED, *GIVEN, 1, 1, 1, 1]),
    ],
)
def test_the_mask_of_each_layout_is_the_one_written_by_hand(messages, mask):
    assert sample_of(messages).labels.astype(int).tolist() == mask


@pytest.mark.parametrize(
    ("messages", "mask"),
    [
        ([user(), answer()], [*TEXT, 1, 1, 1]),
        ([user(IMAGE), answer(), user(f"{IMAGE}red"), answer(loss=False)], [0, 1, 1, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_the_mask_of_the_plain_style(messages, mask):
    assert sample_of(messages, "plain").labels.astype(int).tolist() == mask


TEXTS = st.lists(st.sampled_from(["red", "7", "Which", "\n", "digit ?", "<|im_end|>", "unknown words"]), min_size=1, max_size=6)
TURNS = st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 3), st.booleans()), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(first=st.none() | TEXTS, turns=TURNS, style=st.sampled_from(["chatml", "plain"]))
def test_nothing_but_answers_bears_loss(first, turns, style):
    """Removing every answer's own tokens leaves a text without loss, whatever the messages are; padding has none either."""
    messages = [system(" ".join(first))] if first and style == "chatml" else []
    for asked, answered, images, loss in turns:
        messages += [user(IMAGE * images + " ".join(asked)), answer(" ".join(answered), loss=loss)]
    sample = sample_of(messages, style)
    expected = sum(
        len(PROCESSOR["plain"]([user("red"), answer(" ".join(answered))], training=True).labels) - 1 + (style == "chatml")
        for _, answered, _, loss in turns
        if loss
    )
    assert int(sample.labels.sum()) == expected
    for start in sample.image_starts:
        assert not sample.labels[start]
    stops = np.isin(sample.input_ids, TOKENIZER.stop_ids[-1])
    bearing = [loss for *_, loss in turns]
    assert sample.labels[stops].tolist() == bearing  # each answer's end, in order
    length, count = len(sample.input_ids), len(sample.image_starts)
    batch = pack_batch([[sample], []], tokens_per_row=length + 5, images_per_row=count + 1, image_size=8)
    weights = np.asarray(batch.loss_weights)
    assert weights[0, :length].tolist() == sample.labels.astype(float).tolist()
    assert not weights[0, length:].any() and not weights[1].any()
