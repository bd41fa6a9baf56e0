"""Files anywhere: on this machine, or where fsspec reads (`gs://`, `s3://`, `memory://`, ...).

A location is a string: a path, or a URL with a scheme. Packages for single stores (gcsfs, s3fs) are the user's to install; the
error says which.
"""

import contextlib
import re
from pathlib import Path
from typing import NamedTuple, Protocol, cast, runtime_checkable

import fsspec
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from owl3_jax.host.foreign import foreign_errors

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@runtime_checkable
class BinaryFile(Protocol):
    """A file that is open for reading; fsspec's are of no class that they share with Python's."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def __enter__(self) -> "BinaryFile": ...

    def __exit__(self, *exception: object) -> None: ...


class StorageError(OSError):
    """A location that cannot be read; the message names it."""


def is_url(location: str | Path) -> bool:
    """Whether this is a URL with a scheme, and not a path of this machine."""
    return isinstance(location, str) and _URL.match(location) is not None


def open_binary(location: str | Path) -> BinaryFile:
    """Opens a file to read bytes from any place of it. Raises StorageError."""
    with _naming(location):
        if is_url(location):
            return cast(BinaryFile, fsspec.open(str(location), "rb").open())
        return cast(BinaryFile, Path(location).open("rb"))


def read_bytes(location: str | Path) -> bytes:
    """The whole content of a file. Raises StorageError."""
    with open_binary(location) as file, _naming(location):
        return file.read()


def exists(location: str | Path) -> bool:
    """Whether there is a file or folder. Raises StorageError when that cannot be found out."""
    with _naming(location):
        system, path = _system(location)
        return bool(system.exists(path))


def is_folder(location: str | Path) -> bool:
    """Whether this is a folder. Raises StorageError when that cannot be found out."""
    with _naming(location):
        system, path = _system(location)
        return bool(system.isdir(path))


def find(pattern: str | Path) -> list[str]:
    """The locations that match a pattern with `*`, `?` and `**`, sorted. Raises StorageError."""
    with _naming(pattern):
        system, path = _system(pattern)
        return [_location(name, pattern, system, path) for name in sorted(system.glob(path))]


class Place(NamedTuple):
    """What is in a folder."""

    name: str
    is_folder: bool


def children(folder: str | Path) -> list[Place]:
    """The files and folders that are in a folder itself. Raises StorageError."""
    with _naming(folder):
        system, path = _system(folder)
        found = system.ls(path, detail=True)
        return [Place(str(info["name"]).rstrip("/").rpartition("/")[2], info["type"] == "directory") for info in found]


def sizes(location: str | Path) -> dict[str, int]:
    """Bytes of a file, or of each file of a folder and the folders in it, by location. Raises StorageError."""
    with _naming(location):
        system, path = _system(location)
        found = system.find(path, detail=True)
        return {_location(key, location, system, path): int(info["size"]) for key, info in sorted(found.items())}


def join(folder: str | Path, name: str) -> str:
    """`name` within a folder; an absolute path or a URL stays as it is."""
    if is_url(name) or Path(name).is_absolute():
        return name
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def parent(location: str | Path) -> str:
    """The folder of a file."""
    return str(location).rpartition("/")[0] if is_url(location) else str(Path(location).parent)


def _system(location: str | Path) -> tuple[AbstractFileSystem, str]:
    """The file system of a location, and the path in it."""
    if is_url(location):
        system, path = url_to_fs(str(location))
        return system, str(path)
    return LocalFileSystem(), str(location)


def _location(found: str, asked: str | Path, system: AbstractFileSystem, path: str) -> str:
    """A path that a file system found, as a location that begins as the one that was asked for, which has this `path`."""
    if not is_url(asked):
        return found
    scheme, has_path, _ = str(asked).rstrip("/").rpartition(path)
    return scheme + found if has_path else str(system.unstrip_protocol(found))


def _naming(location: str | Path) -> contextlib.AbstractContextManager[None]:
    return foreign_errors(StorageError, f"cannot read {location}")
