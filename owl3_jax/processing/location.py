"""Where an image or video is: a path, a `file:` URI, a URL that fsspec reads (gs://, s3://), or a `data:` URI that holds it."""

import base64
import binascii
import urllib.parse
import urllib.request
from pathlib import Path

from owl3_jax.host import storage

_LONGEST_NAME = 200  # characters of a path that a message shows


def locate(source: str | Path) -> Path | bytes:
    """The path that `source` names, which is not opened; or the bytes that a `data:` URI holds, or that a URL's store has.

    Raises ValueError for an empty path, a URI that is malformed, one that would have to be fetched from the web, and a path of
    something without an end or an order, such as a named pipe; StorageError for a URL that cannot be read.
    """
    text = str(source)
    if not text:
        raise ValueError("its path is empty")
    scheme = _scheme(source)
    if scheme == "data":
        return _data(text)
    if scheme == "file":
        return _checked(_file(text))
    if scheme in ("http", "https"):
        raise ValueError("files on the web are not fetched; download it, and give the path of the file")
    if storage.is_url(source):
        return storage.read_bytes(source)
    return _checked(Path(source))


def is_uri(source: str | Path) -> bool:
    """Whether `source` says where it is by itself, so that no folder goes before it."""
    return _scheme(source) is not None or storage.is_url(source)


def display_name(index: int, source: object) -> str:
    """The name of an image or video in messages: its number, and where it is if that is known and short."""
    if not isinstance(source, str | Path) or not str(source):
        return str(index)
    text = str(source)
    if _scheme(source) == "data":
        return f"{index} ({text[:40].partition(',')[0]}, {len(text)} characters)"
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME // 2]}...{text[-_LONGEST_NAME // 2 :]}"
    return f"{index} ({text})"


def _checked(path: Path) -> Path:
    """The path, if it is a file, a folder, or nothing, which whoever opens it says best."""
    if not path.is_file() and not path.is_dir() and path.exists():
        raise ValueError("it is a pipe, a socket or a device; give the path of a file")
    return path


def _scheme(source: str | Path) -> str | None:
    """The scheme of a URI that this module knows; a `Path` has none, whatever it is called."""
    if not isinstance(source, str):
        return None
    scheme = source[:6].partition(":")
    return scheme[0].lower() if scheme[1] and scheme[0].lower() in ("data", "file", "http", "https") else None


def _data(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("its data: URI has no comma, after which the data would begin")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its data: URI is not valid base64: {error}") from error


def _file(uri: str) -> Path:
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"the file: URI names another machine, {parts.netloc!r}; write file:///path")
    return Path(urllib.request.url2pathname(parts.path))
