"""The chat layout: messages to a list of text chunks, every newline as the official processor writes it.

One question, ready to be answered (`⏎` is one newline; there is nothing else between the pieces):

    <|im_start|>system⏎<|im_end|>⏎<|im_start|>user⏎{question}<|im_end|>⏎<|im_start|>assistant⏎

In training this is followed by `{answer}<|im_end|><|endoftext|>`, the targets of the loss. `<|endoftext|>` follows every
assistant turn, in the middle of a history too. Source: the processor of mPLUG-Owl3-7B-240728.

The official processor tokenises chunk by chunk. The chunks here are finer than its own: a marker such as `<|im_end|>` is a
chunk by itself. That gives the same ids, since a tokenizer splits at special tokens first, and it distinguishes the markers
from user text that spells one. Where the official processor has no boundary, tokens may cross the one between two chunks; the
second chunk then `continues` the first.

Text that only spells a placeholder is escaped by a private-use character inside it, which `chat_chunks` takes out
again once the text is split. So a user of a server can write about `<|image|>` without being asked for one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

from owl3_jax.config import ChatStyle

ChunkKind = Literal["text", "marker", "media", "image"]

IMAGE = "<|image|>"
VIDEO = "<|video|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TEXT_END = "<|endoftext|>"
MARKERS = (TURN_START, TURN_END, TEXT_END)
CUT_START, CUT_END = "<|start_cut|>", "<|end_cut|>"
VIDEO_START, VIDEO_END = "<|start_video_frame|>", "<|end_video_frame|>"
MEDIA_MARKERS = (CUT_START, CUT_END, VIDEO_START, VIDEO_END)
ROLES = ("system", "user", "assistant")

_ENDS: dict[ChatStyle, tuple[str, ...]] = {"chatml": (TURN_END, TEXT_END), "plain": (TEXT_END,)}  # what follows an answer

_AT_PLACEHOLDERS = re.compile(f"({re.escape(IMAGE)}|{re.escape(VIDEO)})")
_ESCAPE = "\U0010fffd"  # the last character of private use
_ESCAPABLE = re.compile(rf"<\|(?={_ESCAPE}*(?:image|video)\|>)")
_ESCAPED = re.compile(rf"<\|{_ESCAPE}(?={_ESCAPE}*(?:image|video)\|>)")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # one of `ROLES`
    content: str
    loss: NotRequired[bool]  # False: training takes this answer as given


class Chunk(NamedTuple):
    """A piece of text that is tokenised by itself."""

    text: str
    kind: ChunkKind = "text"  # "media" is a marker around crops or frames: a token in some checkpoints, text in others
    is_target: bool = False  # whether its tokens have loss
    continues: bool = False  # one text with the chunk before it, if neither is a token of its own


def as_messages(question: str, images: int, videos: int) -> list[Message]:
    """One user message; a question without placeholders gets those of the images, then those of the videos."""
    return [{"role": "user", "content": with_placeholders(question, [IMAGE] * images + [VIDEO] * videos)}]


def with_placeholders(question: str, placeholders: Iterable[str]) -> str:
    """The question after these placeholders, a line each; unchanged if it has placeholders of its own."""
    if IMAGE in question or VIDEO in question:
        return question
    return "".join(f"{placeholder}\n" for placeholder in placeholders) + question


def chat_chunks(
    messages: Sequence[Message], *, training: bool, style: ChatStyle = "chatml", media: Sequence[Sequence[Chunk]] | None = None
) -> list[Chunk]:
    """Lays out a conversation.

    Args:
        messages: `{"role", "content"}` each; the content of user messages holds one placeholder, `<|image|>` or `<|video|>`,
            per image or video.
        training: True keeps everything. False makes a prompt: a last user message is followed by the assistant's header, and a
            last assistant message is left open, so that the answer continues it. An empty one, the official way to ask for an
            answer, is the header alone. (The official processor drops what a last assistant message says.)
        style: `plain` has no roles and no system turn; an answer ends in `<|endoftext|>` alone.
        media: what each placeholder becomes, in text order (`owl3_jax.processing.media`); one image chunk by default.

    Returns:
        Chunks whose texts joined are the whole text. None is empty, and user text is split at every placeholder. What
        `escape_placeholders` escaped is plain text, as it was written, in the messages of all roles.

    Raises:
        ValueError: an unknown role, no message, content that is not a string, a placeholder outside user text (in the answers
            of a prompt it is plain text), or a number of `media` that differs from the number of placeholders.
    """
    placeholders = find_placeholders(messages, style, training=training)
    pieces = [[Chunk(IMAGE, "image")]] * len(placeholders) if media is None else media
    if len(pieces) != len(placeholders):
        raise ValueError(f"the messages have {len(placeholders)} placeholders, but media has {len(pieces)} entries")
    chunks = [_unescaped(chunk) for chunk in {"chatml": _chatml, "plain": _plain}[style](messages, iter(pieces))]
    if training:
        return chunks
    if messages[-1]["role"] == "assistant":
        return chunks[: -len(_ENDS[style])]
    return chunks + _assistant_header() if style == "chatml" else chunks


def placeholders_of(text: str) -> list[str]:
    """Every `<|image|>` and `<|video|>` of a text in its order."""
    return _AT_PLACEHOLDERS.findall(text)


def escape_placeholders(text: str) -> str:
    """The text with every `<|image|>` and `<|video|>` in it escaped, so that it is none; `chat_chunks` shows it as it was.

    No two texts become the same: one that is escaped already is escaped once more.
    """
    return _ESCAPABLE.sub(f"<|{_ESCAPE}", text)


def unescape_placeholders(text: str) -> str:
    """The text that `escape_placeholders` was given; one without escapes stays as it is."""
    return _ESCAPED.sub("<|", text) if _ESCAPE in text else text


def find_placeholders(messages: Sequence[Message], style: ChatStyle = "chatml", *, training: bool) -> list[str]:
    """Every `<|image|>` and `<|video|>` of the user's text in its order; takes and raises what `chat_chunks` does."""
    if not messages:
        raise ValueError("there are no messages: a conversation needs at least one user message")
    for index, message in enumerate(messages):
        _check_message(message, f"message {index}", ROLES if style == "chatml" else ROLES[1:], training=training)
    if not training and messages[-1]["role"] == "system":
        raise ValueError(
            f"message {len(messages) - 1}, the last one, is the system's; a prompt ends with a user message, or with an "
            "assistant message, which the answer continues"
        )
    users = (message["content"] for message in messages if message["role"] == "user")
    return [placeholder for content in users for placeholder in placeholders_of(content)]


def _check_message(message: Message, name: str, roles: Sequence[str], *, training: bool) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise ValueError(f"{name} has role {role!r}; it must be one of {', '.join(roles)}")
    if not isinstance(content, str):
        raise ValueError(f"{name} has content of type {type(content).__name__}; it must be a string")
    found = _AT_PLACEHOLDERS.search(content)
    is_answer = role == "assistant" and not training  # a model can spell anything
    if role != "user" and not is_answer and found:
        raise ValueError(f"{name} ({role}) contains {found[0]}; images and videos can be in user messages only")


def _unescaped(chunk: Chunk) -> Chunk:
    return chunk._replace(text=unescape_placeholders(chunk.text)) if chunk.kind == "text" else chunk


def _chatml(messages: Sequence[Message], media: Iterator[Sequence[Chunk]]) -> list[Chunk]:
    chunks = [] if messages[0]["role"] == "system" else _system("")
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "user":
            chunks += _user(content, media)
        elif role == "system":
            chunks += _system(content)
        else:
            chunks += _assistant_header() + _answer(message, "chatml")
    return chunks


def _plain(messages: Sequence[Message], media: Iterator[Sequence[Chunk]]) -> list[Chunk]:
    chunks = []
    for message in messages:
        if message["role"] == "user":
            chunks += _fill_placeholders(message["content"], media)
        else:
            chunks += _answer(message, "plain")
    return chunks


def _system(content: str) -> list[Chunk]:
    return [Chunk(TURN_START, "marker"), Chunk(f"system\n{content}"), Chunk(TURN_END, "marker")]


def _user(content: str, media: Iterator[Sequence[Chunk]]) -> list[Chunk]:
    # The role's line and the text after it are one chunk: `⏎⏎` is one token of the released tokenizers.
    text = _fill_placeholders(f"user\n{content}", media)
    return [Chunk("\n"), Chunk(TURN_START, "marker"), *text, Chunk(TURN_END, "marker")]


def _assistant_header() -> list[Chunk]:
    return [Chunk("\n"), Chunk(TURN_START, "marker"), Chunk("assistant\n")]


def _answer(message: Message, style: ChatStyle) -> list[Chunk]:
    is_target = message.get("loss", True)
    text = [Chunk(message["content"], is_target=is_target)] if message["content"] else []
    return text + [Chunk(marker, "marker", is_target=is_target) for marker in _ENDS[style]]


def _fill_placeholders(text: str, media: Iterator[Sequence[Chunk]]) -> list[Chunk]:
    chunks: list[Chunk] = []
    for part in _AT_PLACEHOLDERS.split(text):
        if part in (IMAGE, VIDEO):
            chunks += next(media)
        elif part:
            chunks.append(Chunk(part))
    return chunks[:1] + [chunk._replace(continues=True) for chunk in chunks[1:]]
