"""The chat layout against the texts that the official processor printed (golden file of 7B-240728, uncropped cases)."""

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from owl3_jax.formats.bundled import bundled_checkpoint
from owl3_jax.processing.chat import (
    Chunk,
    chat_chunks,
    escape_placeholders,
    find_placeholders,
    placeholders_of,
    unescape_placeholders,
)
from owl3_jax.processing.processor import Processor

SYSTEM = "<|im_start|>system\n<|im_end|>"
PROMPT_END = "<|im_end|>\n<|im_start|>assistant\n"


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


GOLDEN = {
    "text_only": (
        [user("What is the capital of France?"), assistant("")],
        f"{SYSTEM}\n<|im_start|>user\nWhat is the capital of France?{PROMPT_END}",
    ),
    "three_images_interleaved": (
        [user("First <|image|> then <|image|>\nand <|image|>. Which differs?"), assistant("")],
        f"{SYSTEM}\n<|im_start|>user\nFirst <|image|> then <|image|>\nand <|image|>. Which differs?{PROMPT_END}",
    ),
    "two_turns": (
        [user("<|image|>\nWhat is it?"), assistant("A cat."), user("And this? <|image|>"), assistant("")],
        f"{SYSTEM}\n<|im_start|>user\n<|image|>\nWhat is it?{PROMPT_END}A cat.<|im_end|><|endoftext|>"
        f"\n<|im_start|>user\nAnd this? <|image|>{PROMPT_END}",
    ),
    "system_message": (
        [{"role": "system", "content": "You are terse."}, user("<|image|>Hi 你好 😀!"), assistant("")],
        f"<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\n<|image|>Hi 你好 😀!{PROMPT_END}",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts_are_the_official_ones(name):
    messages, expected = GOLDEN[name]
    assert text_of(chat_chunks(messages, training=False)) == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_a_last_user_message_gets_the_generation_prompt(name):
    messages, expected = GOLDEN[name]
    assert text_of(chat_chunks(messages[:-1], training=False)) == expected


def test_what_a_last_assistant_message_says_is_continued_in_a_prompt():
    for answer in ("", "None", "A cat."):
        chunks = chat_chunks([user("Hi"), assistant(answer)], training=False)
        assert text_of(chunks) == f"{SYSTEM}\n<|im_start|>user\nHi{PROMPT_END}{answer}"


def test_only_the_last_answer_of_a_prompt_is_open():
    chunks = chat_chunks([assistant("a"), assistant("")], training=False, style="plain")
    assert text_of(chunks) == "a<|endoftext|>"
    chunks = chat_chunks([user("Hi"), assistant("a"), assistant("b")], training=False)
    assert text_of(chunks).endswith("assistant\na<|im_end|><|endoftext|>\n<|im_start|>assistant\nb")


def test_training_keeps_every_answer_and_marks_it_with_both_its_ends():
    messages = [user("<|image|>\nWhat is it?"), assistant("A cat."), user("Sure?"), assistant("Yes.")]
    chunks = chat_chunks(messages, training=True)
    assert text_of(chunks) == (
        f"{SYSTEM}\n<|im_start|>user\n<|image|>\nWhat is it?{PROMPT_END}A cat.<|im_end|><|endoftext|>"
        f"\n<|im_start|>user\nSure?{PROMPT_END}Yes.<|im_end|><|endoftext|>"
    )
    targets = [chunk.text for chunk in chunks if chunk.is_target]
    assert targets == ["A cat.", "<|im_end|>", "<|endoftext|>", "Yes.", "<|im_end|>", "<|endoftext|>"]


def test_training_appends_no_prompt_to_a_last_user_message():
    assert text_of(chat_chunks([user("Hi")], training=True)) == f"{SYSTEM}\n<|im_start|>user\nHi<|im_end|>"


def test_an_empty_system_message_is_the_default_one():
    messages = [user("Hi"), assistant("Ho")]
    with_system = [{"role": "system", "content": ""}, *messages]
    assert text_of(chat_chunks(with_system, training=True)) == text_of(chat_chunks(messages, training=True))


def test_a_later_system_message_has_no_newline_before_it():
    messages = [user("Hi"), {"role": "system", "content": "Be brief."}]
    text = text_of(chat_chunks(messages, training=True))
    assert text.endswith("Hi<|im_end|><|im_start|>system\nBe brief.<|im_end|>")


def test_placeholders_are_chunks_of_their_own_and_no_chunk_is_empty():
    chunks = chat_chunks([user("<|image|><|image|>\nCompare.")], training=False)
    content = chunks[3:-3]
    assert [chunk.text for chunk in content] == [
        "\n", "<|im_start|>", "user\n", "<|image|>", "<|image|>", "\nCompare.", "<|im_end|>"
    ]  # fmt: skip
    assert [chunk.kind for chunk in content] == ["text", "marker", "text", "image", "image", "text", "marker"]
    assert all(chunk.text for chunk in chunks)


def test_a_marker_spelt_by_a_user_stays_text():
    chunks = chat_chunks([user("<|im_end|> over")], training=False)
    assert Chunk("user\n<|im_end|> over", "text") in chunks


def test_plain_style_has_neither_roles_nor_system_turn():
    messages = [user("<|image|>\nA cat is"), assistant(" an animal.")]
    chunks = chat_chunks(messages, training=True, style="plain")
    assert text_of(chunks) == "<|image|>\nA cat is an animal.<|endoftext|>"
    assert [chunk.text for chunk in chunks if chunk.is_target] == [" an animal.", "<|endoftext|>"]
    assert text_of(chat_chunks(messages, training=False, style="plain")) == "<|image|>\nA cat is an animal."
    assert text_of(chat_chunks(messages[:-1], training=False, style="plain")) == "<|image|>\nA cat is"


def test_messages_are_not_changed():
    messages = [user("<|image|>\nHi"), assistant("Ho")]
    before = copy.deepcopy(messages)
    chat_chunks(messages, training=True)
    assert messages == before


@pytest.mark.parametrize(
    ("messages", "style", "complaint"),
    [
        ([], "chatml", "no messages"),
        ([{"role": "bot", "content": "Hi"}], "chatml", "message 0 has role 'bot'; it must be one of system, user, assistant"),
        ([user("Hi"), {"role": "user"}], "chatml", "message 1 has content of type NoneType"),
        ([user("Hi"), assistant("<|image|>")], "chatml", r"message 1 \(assistant\) contains <\|image\|>"),
        ([{"role": "system", "content": "<|video|>"}], "chatml", r"message 0 \(system\) contains <\|video\|>"),
        ([{"role": "system", "content": "x"}], "plain", "must be one of user, assistant"),
    ],
)
def test_malformed_conversations_are_refused(messages, style, complaint):
    with pytest.raises(ValueError, match=complaint):
        chat_chunks(messages, training=True, style=style)


def test_what_a_model_has_answered_may_spell_a_placeholder():
    messages = [user("<|image|>"), assistant("<|image|>!"), user("So?")]
    assert find_placeholders(messages, training=False) == ["<|image|>"]
    chunks = chat_chunks(messages, training=False)
    assert [chunk.text for chunk in chunks if chunk.kind == "image"] == ["<|image|>"]
    assert Chunk("<|image|>!", is_target=True) in chunks
    with pytest.raises(ValueError, match=r"message 1 \(assistant\) contains <\|image\|>"):
        find_placeholders(messages, training=True)


def test_media_fill_the_placeholders_in_text_order():
    cut = [Chunk("Cut "), Chunk("<|image|>", "image"), Chunk("<|end_cut|>", "media")]
    frames = [Chunk("<|image|>", "image")] * 2
    messages = [user("A <|image|>"), assistant("ok"), user("<|video|>!")]
    chunks = chat_chunks(messages, training=False, media=[cut, frames])
    first, second = "user\nA Cut <|image|><|end_cut|>", "user\n<|image|><|image|>!"
    assert text_of(chunks) == (
        f"{SYSTEM}\n<|im_start|>{first}{PROMPT_END}ok<|im_end|><|endoftext|>\n<|im_start|>{second}{PROMPT_END}"
    )
    continuing = [chunk.text for chunk in chunks if chunk.continues]
    assert continuing == ["Cut ", "<|image|>", "<|end_cut|>", "<|image|>", "<|image|>", "!"]


def test_media_and_placeholders_must_agree_in_number():
    with pytest.raises(ValueError, match="the messages have 1 placeholders, but media has 2 entries"):
        chat_chunks([user("<|image|>")], training=False, media=[[Chunk("a")], [Chunk("b")]])


def test_placeholders_are_found_in_text_order_over_all_messages():
    messages = [user("<|video|> and <|image|>"), assistant("ok"), user("<|image|>")]
    assert find_placeholders(messages, training=False) == ["<|video|>", "<|image|>", "<|image|>"]


ESCAPED = escape_placeholders("<|image|>")
NEAR_PLACEHOLDERS = st.lists(
    st.sampled_from(["<|", "|>", "<", "|", ">", "image", "video", "<|image|>", "<|video|>", ESCAPED, ESCAPED[2], "\n", "a"])
).map("".join)


@settings(deadline=None)
@given(NEAR_PLACEHOLDERS)
@example(ESCAPED)
@example(escape_placeholders(ESCAPED))
def test_escaped_text_has_no_placeholder_and_comes_back_as_it_was(text):
    escaped = escape_placeholders(text)
    assert placeholders_of(escaped) == []
    assert unescape_placeholders(escaped) == text


@settings(deadline=None)
@given(NEAR_PLACEHOLDERS)
def test_every_text_without_placeholders_is_the_escape_of_one_text(text):
    if not placeholders_of(text):
        assert escape_placeholders(unescape_placeholders(text)) == text


@pytest.mark.parametrize("text", ["", "What is this?", "<|im_end|> <image> <|image", "image|>", ESCAPED[2], "<|videos|>"])
def test_other_text_is_not_escaped(text):
    assert escape_placeholders(text) == unescape_placeholders(text) == text


@pytest.mark.parametrize("style", ["chatml", "plain"])
@pytest.mark.parametrize("training", [False, True])
def test_escaped_text_is_shown_as_it_was_written_by_every_role(style, training):
    spelt = "<|video|> is no <|image|>"
    messages = [user(f"<|image|>{escape_placeholders(spelt)}"), assistant(escape_placeholders(spelt))]
    if style == "chatml":
        messages.insert(0, {"role": "system", "content": escape_placeholders(spelt)})
    chunks = chat_chunks(messages, training=training, style=style)
    assert [chunk.text for chunk in chunks if chunk.kind == "image"] == ["<|image|>"]
    assert text_of(chunks).count(spelt) == len(messages)
    assert ESCAPED[2] not in text_of(chunks)
    assert find_placeholders(messages, style, training=training) == ["<|image|>"]


def test_no_token_of_an_image_comes_of_escaped_text():
    processor = Processor.from_pretrained(bundled_checkpoint("digits"))
    image = processor.tokenizer.token_id("<|image|>")
    prompt = processor.prepare([user(f"{ESCAPED} <|image|>\n{escape_placeholders('<|video|>')}")], [b"not opened yet"])
    assert prompt.input_ids.tolist().count(image) == prompt.num_images == 1
    assert prompt.input_ids[prompt.image_starts].tolist() == [image]
