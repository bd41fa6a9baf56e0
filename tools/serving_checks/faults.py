"""Requests with a fault, and the status and code that each has to get."""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from PIL import Image

from serving_checks.questions import data_uri

CHAT = "/v1/chat/completions"
_JSON = {"Content-Type": "application/json"}


class Faulty(NamedTuple):
    """A request that is refused."""

    name: str
    body: bytes
    status: int
    code: str
    method: str = "POST"
    path: str = CHAT
    headers: Mapping[str, str] = _JSON


def faulty_requests(model: str) -> list[Faulty]:
    """One of each sort."""
    return [*_without_sense(model), *_with_wrong_fields(model), *_with_wrong_media(model)]


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")


def chat_body(model: str, content: object, **fields: object) -> bytes:
    """A request with one message."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **fields}).encode()


def image_body(model: str, url: object, **fields: object) -> bytes:
    """A request with one image."""
    image = {"type": "image_url", "image_url": {"url": url}}
    return chat_body(model, [image, {"type": "text", "text": "Describe the image."}], **fields)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _without_sense(model: str) -> Iterator[Faulty]:
    yield Faulty("no JSON", b'{"model": ', 400, "invalid_json")
    yield Faulty("an empty body", b"", 400, "invalid_json")
    yield Faulty("a list", b"[]", 400, "invalid_value")
    yield Faulty("no messages", json.dumps({"model": model}).encode(), 400, "missing_field")
    yield Faulty("another model", chat_body("gpt-5", "Hello"), 404, "model_not_found")
    yield Faulty("a form", b"model=digits", 415, "unsupported_media_type", headers={"Content-Type": "text/plain"})
    yield Faulty("no such path", b"", 404, "not_found", path="/v1/completions")
    yield Faulty("another method", b"", 405, "method_not_allowed", method="DELETE")


def _with_wrong_fields(model: str) -> Iterator[Faulty]:
    fields: Mapping[str, tuple[Mapping[str, object], str]] = {
        "a hot temperature": ({"temperature": 9}, "invalid_value"),
        "a negative number of tokens": ({"max_tokens": -1}, "invalid_value"),
        "a thousand answers": ({"n": 1000}, "invalid_value"),
        "more answers than are given": ({"n": 100}, "invalid_value"),
        "alternatives without log-probabilities": ({"top_logprobs": 2}, "invalid_value"),
        "usage without a stream": ({"stream_options": {"include_usage": True}}, "invalid_value"),
        "JSON wanted": ({"response_format": {"type": "json_object"}}, "unsupported_parameter"),
        "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter"),
        "an empty stop": ({"stop": ""}, "invalid_value"),
    }
    for name, (given, code) in fields.items():
        yield Faulty(name, chat_body(model, "Hello", **given), 400, code)
    yield Faulty("an unknown part", chat_body(model, [{"type": "audio", "audio": "x"}]), 400, "invalid_value")
    yield Faulty("more text than the model takes", chat_body(model, "many " * 5000), 400, "context_length_exceeded")


def _with_wrong_media(model: str) -> Iterator[Faulty]:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(file, "png")
    whole = file.getvalue()
    media = {
        "an image without content": ("data:image/png;base64,", "media_invalid"),
        "an image that is no base64": ("data:image/png;base64,%%%", "media_invalid"),
        "an image that is none": (data_uri(b"not an image at all"), "unreadable_image"),
        "an image that is cut off": (data_uri(whole[: len(whole) // 2]), "unreadable_image"),
        "an image of 10^10 pixels": (data_uri(png_that_claims(100_000, 100_000)), "image_too_large"),
        "a URL of the web": ("https://example.com/a.png", "media_refused"),
        "a file": ("file:///etc/passwd", "media_refused"),
        "an unknown scheme": ("gopher://example.com/", "media_invalid"),
    }
    for name, (url, code) in media.items():
        yield Faulty(name, image_body(model, url), 400, code)
    video = {"type": "video_url", "video_url": {"url": data_uri(b"\0\0\0\x18ftypmp42" + bytes(60), "video/mp4")}}
    yield Faulty("a video that is none", chat_body(model, [video]), 400, "unreadable_video")
