"""What callers give as a conversation, in one form: messages whose contents are strings, and their media in text order.

Besides a question and `{"role", "content"}` with placeholders, a content may be a list of parts, as OpenAI's and Hugging Face's
chats have it:

    {"type": "text", "text": "What is this?"}
    {"type": "image_url", "image_url": {"url": "cat.jpg"}}      also a file: or data: URI; files on the web are not fetched
    {"type": "video_url", "video_url": {"url": "film.mp4"}}
    {"type": "image", "image": "cat.jpg"}                       or "url" or "path"; without any of them, the next of `images`
    {"type": "video", "video": "film.mp4"}

Each part is a line of the text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

from owl3_jax.processing.chat import IMAGE, VIDEO, Message, as_messages, placeholders_of
from owl3_jax.processing.images import ImageSource, SupportsArray
from owl3_jax.processing.video import VideoSource

_TEXTS = ("text", "input_text", "output_text")
_MEDIA = {  # type of a part -> placeholder, and the keys that may hold its source
    "image": (IMAGE, ("image", "url", "path")),
    "image_url": (IMAGE, ("image_url",)),
    "input_image": (IMAGE, ("image_url",)),
    "video": (VIDEO, ("video", "url", "path")),
    "video_url": (VIDEO, ("video_url",)),
    "input_video": (VIDEO, ("video_url",)),
}


class Conversation(NamedTuple):
    """Messages with text contents, and what their placeholders stand for, in text order."""

    messages: list[Message]
    images: list[ImageSource]
    videos: list[VideoSource]


class _Given(NamedTuple):
    """Media that were given beside the messages and are not placed yet, by placeholder."""

    images: Iterator[object]
    videos: Iterator[object]

    def next_of(self, placeholder: str, count: int = 1) -> list[object]:
        """At most `count` of them."""
        kind = self.images if placeholder == IMAGE else self.videos
        return [medium for _, medium in zip(range(count), kind, strict=False)]


def as_conversation(messages: object, images: object = None, videos: object = None) -> Conversation:
    """The conversation that a caller means.

    Args:
        messages: a question, one message, or a list of messages.
        images: None, a list of `ImageSource`, or one.
        videos: None, a list of `VideoSource`, or the path of one.

    Raises ValueError when it is something else; the message names the place.
    """
    given_images, given_videos = _as_list(images, "images"), _as_list(videos, "videos")
    if isinstance(messages, str):
        asked = as_messages(messages, len(given_images), len(given_videos))
        return Conversation(asked, cast(list[ImageSource], given_images), cast(list[VideoSource], given_videos))
    listed = [_as_mapping(message, index) for index, message in enumerate(_as_messages(messages))]
    given = _Given(iter(given_images), iter(given_videos))
    placed: dict[str, list[object]] = {IMAGE: [], VIDEO: []}
    written: list[Message] = []
    for index, message in enumerate(listed):
        # The chat checks that roles and contents are strings.
        written.append(cast(Message, {**message, "content": _content(message, f"message {index}", given, placed)}))
    images_in_order, videos_in_order = [*placed[IMAGE], *given.images], [*placed[VIDEO], *given.videos]
    return Conversation(written, cast(list[ImageSource], images_in_order), cast(list[VideoSource], videos_in_order))


def map_sources(message: Mapping[str, object], change: Callable[[str], object]) -> Mapping[str, object]:
    """The same message, with `change` applied to each path or URI in its parts; the rest is left as it is, right or wrong."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_map_part(part, change) for part in content]}


def _map_part(part: object, change: Callable[[str], object]) -> object:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _MEDIA:
        return part

    def changed(value: object) -> object:
        if isinstance(value, Mapping) and isinstance(value.get("url"), str):
            return {**value, "url": change(value["url"])}
        return change(value) if isinstance(value, str) else value

    return {**part, **{key: changed(part[key]) for key in _MEDIA[kind][1] if key in part}}


def _as_messages(messages: object) -> Iterable[object]:
    if isinstance(messages, Mapping):
        return [messages]
    if isinstance(messages, Sequence) and not isinstance(messages, bytes | bytearray | memoryview):
        return messages
    raise ValueError(
        f'messages is {_kind(messages)}; it must be a question as a string, or a list of {{"role": ..., "content": ...}}'
    )


def _as_mapping(message: object, index: int) -> Mapping[str, object]:
    if not isinstance(message, Mapping):
        raise ValueError(f'message {index} is {_kind(message)}; it must be {{"role": ..., "content": ...}}')
    if missing := [key for key in ("role", "content") if key not in message]:
        raise ValueError(f"message {index} has no {missing[0]!r}; its keys are {', '.join(map(repr, message)) or 'none'}")
    return message


def _as_list(media: object, name: str) -> list[object]:
    """Several media, or the one that was given without a list."""
    if media is None:
        return []
    if isinstance(media, list | tuple):  # most often; a protocol takes long to look for
        return list(media)
    if isinstance(media, str | Path | bytes | bytearray | Image.Image) or _is_array_of_one(media, name):
        return [media]
    if isinstance(media, Mapping | SupportsArray) or not isinstance(media, Iterable):
        raise ValueError(f"{name} is {_kind(media)}; it must be a list, or None")
    return list(media)


def _is_array_of_one(media: object, name: str) -> bool:
    """Whether this is an array [H, W, 3] for `images`, or [F, H, W, 3] for `videos`."""
    return isinstance(media, SupportsArray) and np.ndim(media) == (3 if name == "images" else 4)


def _content(message: Mapping[str, object], name: str, given: _Given, placed: dict[str, list[object]]) -> object:
    """The content as text; its media are added to `placed`. What is neither text nor parts is left for the chat to refuse."""
    content = message["content"]
    if isinstance(content, str):
        if message["role"] == "user":
            for placeholder in placeholders_of(content):
                placed[placeholder] += given.next_of(placeholder)
        return content
    if not isinstance(content, list | tuple):
        return content
    return "\n".join(_part(part, f"part {index} of {name}", given, placed) for index, part in enumerate(content))


def _part(part: object, name: str, given: _Given, placed: dict[str, list[object]]) -> str:
    if isinstance(part, str):
        return _text(part, given, placed)
    if not isinstance(part, Mapping):
        raise ValueError(f'{name} is {_kind(part)}; it must be an object such as {{"type": "text", "text": ...}}')
    kind = part.get("type")
    if kind in _TEXTS:
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{name} has no text: its 'text' is {_kind(part.get('text'))}; it must be a string")
        return _text(str(part["text"]), given, placed)
    if not isinstance(kind, str) or kind not in _MEDIA:
        known = ", ".join([*_TEXTS, *_MEDIA])
        raise ValueError(f"{name} has type {str(kind)[:40]!r}; it must be one of {known}")
    placeholder, keys = _MEDIA[kind]
    sources = [part[key] for key in keys if part.get(key) is not None]
    if not sources and len(keys) == 1:
        raise ValueError(f"{name} has type {kind!r} but no {keys[0]!r}")
    placed[placeholder] += [_source(sources[0], name)] if sources else given.next_of(placeholder)
    return placeholder


def _text(text: str, given: _Given, placed: dict[str, list[object]]) -> str:
    for placeholder in placeholders_of(text):
        placed[placeholder] += given.next_of(placeholder)
    return text


def _source(value: object, name: str) -> object:
    """The source in a part: as it is, or the `url` of an object."""
    if not isinstance(value, Mapping):
        return value
    if not isinstance(value.get("url"), str | Path):
        raise ValueError(f"{name} has no 'url' in its object; it must be a path, a file: or a data: URI")
    return value["url"]


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
