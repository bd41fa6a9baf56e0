"""Writing files atomically: whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_text(path: Path, text: str) -> Path:
    """Writes `text` in UTF-8, as `write_atomically` does. Halves of surrogate pairs are written as JSON's escapes of them."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes `content`, as `write_atomically` does."""
    return write_atomically(path, lambda file: file.write(content))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Calls `write` on a new file next to `path`, then renames it to `path`; a failure leaves an old `path` unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def unwritable(folder: Path) -> str | None:
    """Why no file can be written to a folder, which may have to be made first; None where nothing is in the way."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"nothing can be written to the folder {nearest}"
