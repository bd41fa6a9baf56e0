"""The chat layout: messages to a list of text chunks, every newline as the official processor writes it.

One question, ready to be answered (`⏎` is one newline, nothing else stands between the pieces):

    <|im_start|>system⏎<|im_end|>⏎<|im_start|>user⏎{question}<|im_end|>⏎<|im_start|>assistant⏎

and, in training, `{answer}<|im_end|><|endoftext|>` behind it; these are the targets of the loss. `<|endoftext|>` follows
every assistant turn, in the middle of a history too. Source: the processor of mPLUG-Owl3-7B-240728.

The official processor tokenises chunk by chunk. The chunks here are finer than its own: a marker such as `<|im_end|>` is a
chunk by itself. That gives the same ids, since a tokenizer splits at special tokens first, and lets the markers be told
from a user's text that spells one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Message = Mapping[str, str]
Kind = Literal["text", "marker", "image"]
Style = Literal["chatml", "plain"]

IMAGE = "<|image|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TEXT_END = "<|endoftext|>"
MARKERS = (TURN_START, TURN_END, TEXT_END)
ROLES = ("system", "user", "assistant")

_AT_IMAGES = re.compile(f"({re.escape(IMAGE)})")


class Chunk(NamedTuple):
    """A piece of text that is tokenised by itself."""

    text: str
    kind: Kind = "text"
    is_target: bool = False  # whether its tokens bear loss


def chat_chunks(messages: Sequence[Message], *, training: bool, style: Style = "chatml") -> list[Chunk]:
    """Lays out a conversation.

    Args:
        messages: `{"role", "content"}` each; the content of user messages holds one `<|image|>` per image.
        training: True keeps everything. False makes a prompt: the targets at the end are cut off (of a last assistant
            message only the header stays), and a last user message gets the assistant's header.
        style: `plain` has no roles and no system turn; an answer ends in `<|endoftext|>` alone.

    Returns:
        Chunks whose texts joined are the whole text. None is empty, and user text is split at every placeholder.

    Raises:
        ValueError: an unknown role, no message, content that is no string, or a placeholder outside user text.
    """
    _check_messages(messages, style)
    layout = {"chatml": _chatml, "plain": _plain}[style]
    chunks = layout(messages)
    if training:
        return chunks
    if style == "chatml" and messages[-1]["role"] == "user":
        return chunks + _assistant_header()
    return _without_trailing_targets(chunks)


def count_placeholders(messages: Sequence[Message]) -> int:
    """Number of `<|image|>` in all messages."""
    return sum(message["content"].count(IMAGE) for message in messages)


def _check_messages(messages: Sequence[Message], style: Style) -> None:
    if not messages:
        raise ValueError("there are no messages: a conversation needs at least one user message")
    for index, message in enumerate(messages):
        _check_message(message, f"message {index}", ROLES if style == "chatml" else ROLES[1:])


def _check_message(message: Message, name: str, roles: Sequence[str]) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise ValueError(f"{name} has role {role!r}; it must be one of {', '.join(roles)}")
    if not isinstance(content, str):
        raise ValueError(f"{name} has content of type {type(content).__name__}; it must be a string")
    if role != "user" and IMAGE in content:
        raise ValueError(f"{name} ({role}) contains {IMAGE}; images can stand in user messages only")


def _chatml(messages: Sequence[Message]) -> list[Chunk]:
    chunks = [] if messages[0]["role"] == "system" else _system("")
    turns = {"system": _system, "user": _user, "assistant": _assistant}
    for message in messages:
        chunks += turns[message["role"]](message["content"])
    return chunks


def _plain(messages: Sequence[Message]) -> list[Chunk]:
    chunks = []
    for message in messages:
        if message["role"] == "user":
            chunks += _split_at_images(message["content"])
        else:
            chunks += [*_answer(message["content"]), Chunk(TEXT_END, "marker", is_target=True)]
    return chunks


def _system(content: str) -> list[Chunk]:
    return [Chunk(TURN_START, "marker"), Chunk(f"system\n{content}"), Chunk(TURN_END, "marker")]


def _user(content: str) -> list[Chunk]:
    # The role's line and the text after it are one chunk: `⏎⏎` is one token of the released tokenizers.
    return [Chunk("\n"), Chunk(TURN_START, "marker"), *_split_at_images(f"user\n{content}"), Chunk(TURN_END, "marker")]


def _assistant(content: str) -> list[Chunk]:
    ends = [Chunk(marker, "marker", is_target=True) for marker in (TURN_END, TEXT_END)]
    return _assistant_header() + _answer(content) + ends


def _assistant_header() -> list[Chunk]:
    return [Chunk("\n"), Chunk(TURN_START, "marker"), Chunk("assistant\n")]


def _answer(content: str) -> list[Chunk]:
    return [Chunk(content, is_target=True)] if content else []


def _split_at_images(text: str) -> list[Chunk]:
    return [Chunk(part, "image" if part == IMAGE else "text") for part in _AT_IMAGES.split(text) if part]


def _without_trailing_targets(chunks: Sequence[Chunk]) -> list[Chunk]:
    end = len(chunks)
    while end and chunks[end - 1].is_target:
        end -= 1
    return list(chunks[:end])
