"""Paths as people type them, paste them or drag them into a terminal."""

import shlex
from pathlib import Path

from owl3_jax.processing.location import is_uri, locate


def typed_path(text: str) -> Path:
    r"""The path that `text` means: as it is, quoted, with escaped spaces (`my\ photo.jpg`), a `file:` URI, or one below `~`.

    What names an existing file as it is, is that file, whatever characters it has.

    Raises ValueError for another URI, and for the home of a user that there is not.
    """
    return _expanded(text) if _expanded(text).exists() else _expanded(_unquoted(text))


def _unquoted(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its end, as in `it's.jpg`
        return text
    return words[0] if len(words) == 1 else text  # a path with spaces needs no quotes here


def _expanded(text: str) -> Path:
    if is_uri(text):
        place = locate(text)
        if isinstance(place, bytes):
            raise ValueError("a data: URI cannot be attached here; save it to a file")
        return place
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}; write ./~ for a file whose name begins with ~") from error
