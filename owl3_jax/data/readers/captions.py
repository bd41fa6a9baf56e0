"""Media with a caption as a conversation, and how files of media are recognised."""

from pathlib import PurePath

from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.processing.video import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")


def suffix_of(location: str) -> str:
    """`.jpg` of `photos/A.JPG`."""
    return PurePath(location).suffix.lower()


def is_medium(location: str) -> bool:
    """Whether this is the name of an image or a video."""
    return suffix_of(location) in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def captioned(asked: str, answer: object) -> dict[str, object]:
    """A conversation of one question, which holds the tags of its media, and its answer."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def decoded_caption(encoded: bytes, name: str) -> str:
    """A caption without whitespace around it. Raises BadRecord, whose message calls it `name`, when it is not in UTF-8."""
    try:
        return encoded.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadRecord(Problem("malformed", f"{name} is not in UTF-8: {error}")) from error
