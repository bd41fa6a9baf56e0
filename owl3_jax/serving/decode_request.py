"""A request's messages as a JSON object and blobs, and back. No jax: workers import this.

Only bytes and `Path`s become media. A string is never a source: in `owl3_jax.processing` it could be a path or a URI, and here
it may come from a client.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from owl3_jax.serving.decode_limits import DecodeLimits, DecodeRefused
from owl3_jax.serving.decode_wire import Blob


class Request(NamedTuple):
    """Messages whose sources are in `blobs` (`{"blob": index}`), or on disk (`{"path": path}`)."""

    messages: list[dict[str, object]]
    blobs: list[Blob]
    media: int  # images, frames and videos that it names


class _Packer:
    """Collects the sources of one request, and counts its images and frames."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.blobs: list[Blob] = []
        self._numbers: dict[int, int] = {}  # of blobs, by identity: a request may show one again and again
        self._limits, self.images = limits, 0

    def message(self, message: Mapping[str, object], name: str) -> dict[str, object]:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise _invalid(f"{name} has no role")
        if isinstance(content, str):
            return {"role": role, "content": content}
        if not isinstance(content, list | tuple):
            raise _invalid(f"{name} has no content; it must be a string or a list of parts")
        return {"role": role, "content": [self._part(part, f"part {index} of {name}") for index, part in enumerate(content)]}

    def _part(self, part: object, name: str) -> dict[str, object]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in ("text", "image", "video"):
            raise _invalid(f"{name} is neither text, nor an image, nor a video")
        value = part.get(kind)
        if kind == "text":
            if not isinstance(value, str):
                raise _invalid(f"{name} has no text")
            return {"type": kind, "text": value}
        if kind == "video" and isinstance(value, list | tuple):
            return {"type": kind, kind: self._frames(value, name)}
        return {"type": kind, kind: self._source(value, name)}

    def _frames(self, frames: Sequence[object], name: str) -> list[dict[str, object]]:
        if len(frames) > self._limits.max_frames:
            raise DecodeRefused(
                "too_many_frames", f"{name} is a video of {len(frames)} frames; a video may have {self._limits.max_frames}"
            )
        return [self._source(frame, f"frame {index} of {name}") for index, frame in enumerate(frames)]

    def _source(self, value: object, name: str) -> dict[str, object]:
        self.images += 1
        if self.images > self._limits.max_images:
            raise too_many_images(self._limits)
        if isinstance(value, Path):
            return {"path": str(value)}
        if not isinstance(value, bytes | bytearray | memoryview):
            raise _invalid(f"{name} has no content")
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.blobs)
            self.blobs.append(value)
        return {"blob": self._numbers[id(value)]}


def pack(messages: Sequence[Mapping[str, object]], limits: DecodeLimits) -> Request:
    """The request as it goes to a worker.

    Args:
        messages: `{"role", "content"}` each; other keys are left out. A content is a string, or a list of parts `{"type":
            "text", "text": str}`, `{"type": "image", "image": source}` and `{"type": "video", "video": source or list of
            sources}`, where a source is bytes or a `Path`.
        limits: of images and of frames in lists; what takes decoding to know is left to the worker.

    Raises DecodeRefused.
    """
    packer = _Packer(limits)
    packed = [packer.message(message, f"message {index}") for index, message in enumerate(messages)]
    return Request(packed, packer.blobs, packer.images)


def unpack(packed: object, blobs: Sequence[bytes]) -> object:
    """The messages that `pack` was given, in the worker, which trusts the server. A source shown twice is one object."""
    if isinstance(packed, list):
        return [unpack(each, blobs) for each in packed]
    if not isinstance(packed, dict):
        return packed
    if packed.keys() == {"blob"}:
        return blobs[packed["blob"]]
    if packed.keys() == {"path"}:
        return Path(packed["path"])
    return {key: unpack(each, blobs) for key, each in packed.items()}


def too_many_images(limits: DecodeLimits) -> DecodeRefused:
    """The refusal of a request with more views than it may have."""
    what = "images, counting crops of images and frames of videos"
    return DecodeRefused("too_many_images", f"a request may have {limits.max_images} {what}; this one has more")


def _invalid(message: str) -> DecodeRefused:
    return DecodeRefused("invalid_messages", message)
