"""Errors of libraries that do not document what they raise: Pillow and its plugins, FFmpeg, tokenizers, PyTorch's unpickler."""

import contextlib
from collections.abc import Iterator

_LONGEST_PATH = 200  # characters that a message shows
_SELF_EXPLANATORY = (OSError, ValueError, SyntaxError)  # their messages are sentences; an AttributeError's needs its class


@contextlib.contextmanager
def foreign_errors(error: type[Exception], what: str, remedy: str = "") -> Iterator[None]:
    """Raises `error` with the message `{what}: {reason}{remedy}` for whatever a library raises inside.

    An `error` that was raised inside passes unchanged. KeyboardInterrupt and SystemExit pass too. Wrap calls of the library
    alone: inside, a mistake in our own code would look like a damaged file.
    """
    try:
        yield
    except error:
        raise
    # Decoders of strangers' files raise whatever their authors did not think of, and plugins add classes of their own. One
    # damaged file must not end a run of thousands.
    except Exception as cause:
        raise error(f"{what}: {reason(cause)}{remedy}") from cause


def reason(cause: Exception) -> str:
    """One line that says why, even where the error's own message is empty or has no words."""
    if isinstance(cause, MemoryError):
        return "there is not enough memory for it"
    strerror, filename = (getattr(cause, name, None) for name in ("strerror", "filename"))  # of OSError, and of PyAV's errors
    if strerror and isinstance(strerror, str):
        return f"{strerror}: {filename}" if isinstance(filename, str) and len(filename) <= _LONGEST_PATH else strerror
    text = (str(cause).splitlines() or [""])[0]
    if text and isinstance(cause, _SELF_EXPLANATORY):
        return text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
