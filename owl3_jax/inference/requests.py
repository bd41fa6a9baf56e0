"""Requests, and a JSON-lines file of them: {"id"?, "prompt" or "messages", "images"?, "videos"?, "sampling"?} per line.

A key whose value is null counts as absent.
"""

import codecs
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from owl3_jax.config import JsonTree
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.conversation import map_sources
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.location import is_uri
from owl3_jax.processing.video import VideoSource

Id = str | int
_KEYS = ("id", "prompt", "messages", "images", "videos", "sampling")


class Request(NamedTuple):
    """One prompt with its media, to be answered."""

    id: Id
    messages: str | Sequence[Mapping[str, object]]  # contents may be lists of parts (`owl3_jax.processing.conversation`)
    images: Sequence[ImageSource]
    videos: Sequence[VideoSource]
    sampling: Sampling
    crop: bool | None = None  # whether images are seen in crops too; None: as the processor says


class Failure(NamedTuple):
    """A request that has no answer."""

    id: Id
    error: str


def read_requests(path: Path, sampling: Sampling) -> list[Request | Failure]:
    """The requests of a file in order; blank lines are skipped, a line that is not a request becomes a Failure.

    Args:
        path: the file, in UTF-8. Relative paths of images and videos start at its folder; the id of a request without one is
            the number of its line, counted from 1.
        sampling: the defaults, which the `sampling` options of a line override.

    Raises:
        OSError: it cannot be read.
        ValueError: two requests have the same id, or the file is not in UTF-8.
    """
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16; save it in UTF-8")
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    numbered = {number: line for number, line in enumerate(lines, start=1) if line.strip()}
    requests = [_read_line(number, line, path.parent, sampling) for number, line in numbered.items()]
    _check_ids_differ(path, list(numbered), requests)
    return requests


def _read_line(number: int, line: bytes, folder: Path, sampling: Sampling) -> Request | Failure:
    name: Id = number
    try:
        tree = _object(line)
        name = _id(tree, number)
        return _request(name, tree, folder, sampling)
    except ValueError as error:
        return Failure(name, f"line {number}: {error}")


def _object(line: bytes) -> JsonTree:
    try:
        tree = json.loads(line)
    except ValueError as error:  # raised for JSON and for UTF-8
        raise ValueError(f"invalid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("invalid JSON: it is nested too deeply") from error
    if not isinstance(tree, dict):
        raise ValueError(f"a request must be a JSON object, got {type(tree).__name__}")
    return {key: value for key, value in tree.items() if value is not None}


def _id(tree: JsonTree, number: int) -> Id:
    name = tree.get("id", number)
    if type(name) not in (str, int):
        raise ValueError(f"id must be a string or a whole number, got {_short(name)}")
    return name


def _request(name: Id, tree: JsonTree, folder: Path, sampling: Sampling) -> Request:
    if unknown := [key for key in tree if key not in _KEYS]:
        raise ValueError(f"unknown key {_short(unknown[0])}; known keys: {', '.join(_KEYS)}")
    if ("prompt" in tree) == ("messages" in tree):
        raise ValueError('a request needs either "prompt" or "messages"')
    prompt, messages, options = tree.get("prompt", ""), tree.get("messages", []), tree.get("sampling", {})
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be a string, got {_short(prompt)}")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError('messages must be a list of {"role", "content"}')
    if not isinstance(options, dict):
        raise ValueError(f"sampling must be an object of options, got {_short(options)}")
    chosen = sampling.with_options(**options)
    located = [map_sources(message, lambda source: _locate(source, folder)) for message in messages]
    images, videos = (_media(tree, key, folder) for key in ("images", "videos"))
    return Request(name, located if "messages" in tree else prompt, images, videos, chosen)


def _media(tree: JsonTree, key: str, folder: Path) -> list[str | Path]:
    sources = tree.get(key, [])
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise ValueError(f"{key} must be a list of paths, got {_short(sources)}")
    return [_locate(source, folder) for source in sources]


def _locate(source: str, folder: Path) -> str | Path:
    """A source whose path starts at `folder`; a URI, and an empty path for the loader to name, stay as they are."""
    return source if not source or is_uri(source) else folder / source


def _short(value: object) -> str:
    """How a value of any size looks in a message."""
    return reprlib.repr(value)


def _check_ids_differ(path: Path, numbers: Sequence[int], requests: Sequence[Request | Failure]) -> None:
    lines: dict[Id, int] = {}
    for number, request in zip(numbers, requests, strict=True):
        first = lines.setdefault(request.id, number)
        if first != number:
            raise ValueError(
                f"{path}: lines {first} and {number} have the same id {request.id!r}, so that their results could not be "
                "told apart; the id of a line without one is its number"
            )
