"""Media in files of the server's own machine, below one folder."""

import os
import stat
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from owl3_jax.serving.media_refused import MediaKind, MediaRefused, too_large


def read_local(uri: str, kind: MediaKind, root: Path, limit: int) -> bytes:
    """What the file of a `file:` URI holds, at most `limit` bytes. It has to be below the folder `root`.

    Symbolic links may lead elsewhere below `root`; they are resolved first, and what is then opened is opened without
    following any, so that one which is put there in between leads nowhere. Nothing outside is looked at, but by such links.

    Raises MediaRefused.
    """
    path, given_root = _path(uri), PurePosixPath(root.absolute())
    real_root = os.path.realpath(root)
    below = next((folder for folder in (given_root, PurePosixPath(real_root)) if path.is_relative_to(folder)), None)
    if below is None:
        raise _outside()
    try:
        resolved = PurePosixPath(os.path.realpath(Path(real_root) / path.relative_to(below), strict=True))
        if not resolved.is_relative_to(real_root):
            raise _outside()
        with os.fdopen(_open(real_root, resolved.relative_to(real_root).parts), "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise too_large(kind, limit)
            content = file.read(limit + 1)
    except OSError:
        raise MediaRefused("media_unreachable", f"there is no file that can be read where the {kind} should be") from None
    if len(content) > limit:  # it grew, or its size is not known
        raise too_large(kind, limit)
    return content


def _path(uri: str) -> PurePosixPath:
    """The path that a `file:` URI names, without `..`."""
    try:
        parts = urllib.parse.urlsplit(uri)
        decoded = urllib.parse.unquote_to_bytes(parts.path)
    except ValueError:
        raise _malformed() from None
    if parts.netloc.lower() not in ("", "localhost"):
        raise MediaRefused("media_refused", "the file: URI names another machine; write file:///path")
    if parts.query or parts.fragment or not decoded.startswith(b"/") or b"\0" in decoded:
        raise _malformed()
    path = PurePosixPath("/" + os.fsdecode(decoded).lstrip("/"))  # two slashes would be a root of their own
    if ".." in path.parts:
        raise _outside()
    return path


def _open(root: str, parts: Sequence[str]) -> int:
    """A descriptor of the regular file at `parts` below `root`. Raises OSError, also for a symbolic link on the way."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        name = parts[-1] if parts else "."
        _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))  # opening a device may already do something
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _require_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")


def _malformed() -> MediaRefused:
    return MediaRefused("media_invalid", "the file: URI should be file:///path, with special characters percent-encoded")


def _outside() -> MediaRefused:
    return MediaRefused("media_refused", "the file: URI names a file outside the folder that this server reads media from")
