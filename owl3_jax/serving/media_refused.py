"""Why a medium that a request names is not fetched, in words that its client may read."""

from typing import Literal

MediaKind = Literal["image", "video"]
RefusalCode = Literal["media_refused", "media_invalid", "media_too_large", "media_timeout", "media_unreachable"]

_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")  # the last one is what S3 says of files of no known kind


class MediaRefused(ValueError):
    """A medium that is not fetched, by the client's fault or the host's.

    The message is for the client: it names no address, no path, and nothing that a library said.
    """

    def __init__(self, code: RefusalCode, message: str) -> None:
        """`code`: for OpenAI's form of an error."""
        super().__init__(message)
        self.code = code


def too_large(kind: MediaKind, limit: int) -> MediaRefused:
    """The refusal of a medium with more than `limit` bytes."""
    return MediaRefused("media_too_large", f"the {kind} has more than the {limit} bytes that this server takes")


def require_type(media_type: str, kind: MediaKind) -> None:
    """Raises MediaRefused unless `media_type`, as a Content-Type header or a `data:` URI gives it, may be such a medium.

    None at all and application/octet-stream may be any; a GIF may be a video. What it truly is, its decoder finds out.
    """
    name = media_type.partition(";")[0].strip().lower()
    if name not in _UNTYPED and not name.startswith(f"{kind}/") and (kind, name) != ("video", "image/gif"):
        shown = ascii(name[:60])
        raise MediaRefused("media_invalid", f"the {kind} says that it is of type {shown}; it should be of type {kind}/...")
