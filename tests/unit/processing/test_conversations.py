"""Random conversations through the whole processor, beside a plain restatement of the official one's text."""

import copy
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from owl3_jax.processing.chat import MEDIA_MARKERS
from owl3_jax.processing.crops import choose_grid
from owl3_jax.processing.processor import Processor, Sample
from tests.qwen import SPECIAL_TOKENS, chat_tokenizer, qwen_tokenizer

SIZE = 6
IMAGE_IDS = [27, 91, 1805, 91, 29]
PROCESSORS = {
    "words": Processor(chat_tokenizer(), SIZE),
    "markers spelt out": Processor(chat_tokenizer(), SIZE, media_style="markers"),
    "markers as tokens": Processor(chat_tokenizer(*MEDIA_MARKERS), SIZE, media_style="markers"),
    "plain": Processor(chat_tokenizer(), SIZE, style="plain", media_style="markers"),
}

WORDS = st.sampled_from(["Is it red?", "\n", "  \n", " ok", "3.14", "你好", "😀", "<|", "|>", "?!", "cafe\u0301"])
SPELT = st.sampled_from([*SPECIAL_TOKENS, *MEDIA_MARKERS])
PLACEHOLDERS = st.sampled_from(["<|image|>", "<|video|>"])
PLACEHOLDER = re.compile(r"<\|(?:image|video)\|>")


def texts(*pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(*pieces), max_size=6).map("".join)


@st.composite
def conversations(draw, pieces: tuple, roles: list[str]) -> tuple[list[dict], list, list]:
    """Messages, images and videos that fit their placeholders."""
    messages = []
    for role in draw(st.lists(st.sampled_from(roles), min_size=1, max_size=4)):
        content = draw(texts(*pieces, PLACEHOLDERS) if role == "user" else texts(*pieces))
        # Pieces side by side must not spell a placeholder outside of user text.
        messages.append({"role": role, "content": content if role == "user" else PLACEHOLDER.sub("", content)})
    text = "".join(message["content"] for message in messages if message["role"] == "user")
    sides = st.integers(1, 40)
    images = [Image.new("RGB", (draw(sides), draw(sides)), (index, 0, 0)) for index in range(text.count("<|image|>"))]
    videos = [[Image.new("RGB", (4, 3))] * draw(st.integers(1, 3)) for _ in range(text.count("<|video|>"))]
    return messages, images, videos


def roles_of(processor: Processor) -> list[str]:
    return ["user", "assistant"] if processor.style == "plain" else ["system", "user", "assistant"]


def crop_text(image: Image.Image, style: str) -> str:
    rows, columns = choose_grid(*image.size, SIZE)
    if style == "markers":
        line = " ".join(["<|image|>"] * columns)
        return f"<|start_cut|>{rows}*{columns}\n" + f"{line}\n" * rows + "<|image|><|end_cut|>"
    lines = [" ".join(f"subimg({row},{column})<|image|>" for column in range(columns)) for row in range(rows)]
    return "\n".join([f"Cut to {rows} rows {columns} columns with a global view", *lines, "global_view<|image|>"])


def expand(messages: list[dict], images: list, videos: list, style: str, crop: bool) -> list[dict]:
    """Messages whose placeholders are replaced by the official templates, as text."""
    crop = crop and not (videos and style == "words")
    left, frames = iter(images), iter(videos)

    def template(match: re.Match) -> str:
        if match[0] == "<|image|>":
            image = next(left)
            return crop_text(image, style) if crop else "<|image|>"
        text = "<|image|>" * len(next(frames))
        return text if style == "words" else f"<|start_video_frame|>{text}<|end_video_frame|>"

    contents = [PLACEHOLDER.sub(template, message["content"]) for message in messages]
    return [{"role": message["role"], "content": text} for message, text in zip(messages, contents, strict=True)]


def official_chunks(messages: list[dict], style: str) -> list[tuple[str, bool]]:
    """(text, bears loss) of every piece that the official processor tokenises by itself."""
    plain = style == "plain"
    chunks = [] if plain or messages[0]["role"] == "system" else [("<|im_start|>system\n<|im_end|>", False)]
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            chunks.append((f"<|im_start|>system\n{content}<|im_end|>", False))
        elif message["role"] == "user":
            turn = content if plain else f"\n<|im_start|>user\n{content}<|im_end|>"
            chunks += [(part, False) for part in re.split(r"(<\|image\|>)", turn)]
        else:
            header = [] if plain else [("\n<|im_start|>assistant\n", False)]
            body = content if plain else f"{content}<|im_end|>"
            chunks += [*header, (body, True), ("<|endoftext|>", True)]
    return chunks


def encode(chunks: list[tuple[str, bool]], more_tokens: tuple[str, ...]) -> tuple[list[int], list[bool]]:
    ids, labels = [], []
    for text, is_target in chunks:
        new = qwen_tokenizer(*more_tokens).encode(text, add_special_tokens=False).ids
        ids += new
        labels += [is_target] * len(new)
    return ids, labels


def check(processor: Processor, sample: Sample, conversation: tuple, crop: bool) -> None:
    """Ids, labels and starts against the restatement; the number of images follows."""
    more_tokens = MEDIA_MARKERS if processor is PROCESSORS["markers as tokens"] else ()
    chunks = official_chunks(expand(*conversation, processor.media_style, crop), processor.style)
    ids, labels = encode(chunks, more_tokens)
    assert sample.input_ids.tolist() == ids
    assert sample.labels.tolist() == labels
    before = [index for index, (text, _) in enumerate(chunks) if text == "<|image|>"]
    assert sample.image_starts.tolist() == [len(encode(chunks[:index], more_tokens)[0]) for index in before]
    assert len(sample.pixel_values) == len(before)


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), crop=st.booleans())
def test_training_text_is_the_official_one(name, data, crop):
    processor = PROCESSORS[name]
    conversation = data.draw(conversations((WORDS,), roles_of(processor)))
    check(processor, processor(*conversation, crop, training=True), conversation, crop)


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), crop=st.booleans())
def test_parsed_special_tokens_are_the_official_ones(name, data, crop):
    processor = PROCESSORS[name]
    conversation = data.draw(conversations((WORDS, SPELT), roles_of(processor)))
    check(processor, processor(*conversation, crop, training=True, parse_special_tokens=True), conversation, crop)


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), crop=st.booleans())
def test_spelt_markers_never_become_markers(name, data, crop):
    processor = PROCESSORS[name]
    messages, images, videos = data.draw(conversations((WORDS, SPELT), roles_of(processor)))
    silent = [message | {"content": "".join(PLACEHOLDER.findall(message["content"]))} for message in messages]
    ids = processor(messages, images, videos, crop, training=True).input_ids
    markers = processor(silent, images, videos, crop, training=True).input_ids
    assert ids[ids >= 151643].tolist() == markers[markers >= 151643].tolist()


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), crop=st.booleans(), training=st.booleans())
def test_calls_change_nothing_and_repeat(name, data, crop, training):
    processor = PROCESSORS[name]
    messages, images, videos = data.draw(conversations((WORDS, SPELT), roles_of(processor)))
    messages.append({"role": "user", "content": "So?"})  # a prompt must not end with the system's message
    before = copy.deepcopy((messages, [image.tobytes() for image in images], [len(video) for video in videos]))
    first, second = (processor(messages, images, videos, crop, training=training) for _ in range(2))
    assert before == (messages, [image.tobytes() for image in images], [len(video) for video in videos])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_prompt_is_the_training_text_up_to_the_last_answer(data):
    processor = PROCESSORS["words"]
    messages, images, videos = data.draw(conversations((WORDS,), ["user", "assistant"]))
    question = [*messages, {"role": "user", "content": "And?"}]
    training = processor([*question, {"role": "assistant", "content": "Yes."}], images, videos, training=True)
    for asked in (question, [*question, {"role": "assistant", "content": ""}]):
        prompt = processor(asked, images, videos)
        np.testing.assert_array_equal(prompt.input_ids, training.input_ids[:-4])
        np.testing.assert_array_equal(prompt.labels, training.labels[:-4])
