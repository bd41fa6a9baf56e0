import numpy as np
import pytest
from PIL import Image

from owl3_jax.processing.conversation import as_conversation

A, B, C = (Image.new("RGB", (2, 2), (level, 0, 0)) for level in (1, 2, 3))


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_parts_become_lines_and_media_in_text_order():
    parts = [
        text("First"),
        {"type": "image_url", "image_url": {"url": "cat.jpg", "detail": "low"}},
        {"type": "video_url", "video_url": {"url": "film.mp4"}},
        {"type": "image", "image": B},
        text("and"),
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "video", "path": "folder"},
        text("Which differ?"),
    ]
    found = as_conversation([{"role": "user", "content": parts}])
    lines = "First\n<|image|>\n<|video|>\n<|image|>\nand\n<|image|>\n<|video|>\nWhich differ?"
    assert found.messages == [{"role": "user", "content": lines}]
    assert found.images == ["cat.jpg", B, "data:image/png;base64,AA=="]
    assert found.videos == ["film.mp4", "folder"]


def test_given_media_go_to_placeholders_and_parts_without_a_source():
    messages = [
        {"role": "user", "content": "<|image|> What is it?"},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [{"type": "image", "image": B}, {"type": "image"}, text("And these?")]},
    ]
    found = as_conversation(messages, [A, C])
    assert [message["content"] for message in found.messages] == [
        "<|image|> What is it?",
        "A cat.",
        "<|image|>\n<|image|>\nAnd these?",
    ]
    assert found.images == [A, B, C]


def test_what_was_given_and_not_placed_stays_at_the_end_for_the_count_to_name():
    found = as_conversation([{"role": "user", "content": [text("Hi"), {"type": "image", "image": B}]}], [A], ["film.mp4"])
    assert (found.images, found.videos) == ([B, A], ["film.mp4"])


def test_other_fields_of_messages_are_kept_and_nothing_is_changed():
    messages = [{"role": "assistant", "content": [text("no")], "loss": False}]
    assert as_conversation(messages).messages == [{"role": "assistant", "content": "no", "loss": False}]
    assert messages == [{"role": "assistant", "content": [text("no")], "loss": False}]


def test_a_question_gets_its_placeholders():
    assert as_conversation("What?", np.zeros((4, 4, 3), np.uint8)).messages[0]["content"] == "<|image|>\nWhat?"
    assert as_conversation("What?", (A, B), iter(["a.mp4"])).messages[0]["content"] == "<|image|>\n<|image|>\n<|video|>\nWhat?"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (3, 'part 1 of message 0 is of type int; it must be an object such as {"type": "text", "text": ...}'),
        ({}, "part 1 of message 0 has type 'None'; it must be one of text, "),
        ({"type": "audio"}, "part 1 of message 0 has type 'audio'"),
        ({"type": ["image"]}, "part 1 of message 0 has type"),
        ({"type": "text"}, "part 1 of message 0 has no text: its 'text' is None"),
        ({"type": "text", "text": 3}, "its 'text' is of type int"),
        ({"type": "image_url"}, "part 1 of message 0 has type 'image_url' but no 'image_url'"),
        ({"type": "image_url", "image_url": {}}, "part 1 of message 0 has no 'url' in its object"),
        ({"type": "image_url", "image_url": {"url": 3}}, "part 1 of message 0 has no 'url' in its object"),
    ],
)
def test_a_wrong_part_is_named(part, message):
    with pytest.raises(ValueError) as caught:
        as_conversation([{"role": "user", "content": [text("Hi"), part]}])
    assert message in str(caught.value)
