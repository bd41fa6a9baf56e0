"""Trees in WebDataset tars: files with the same name before the first dot are one record.

`000.json` holds the conversation and `000.jpg`, `000.1.jpg`, ... its images in the order of the archive; or `000.txt` the
caption of `000.jpg` or `000.mp4`. The archive is gone through once for the places of its files; then records are read from
there.
"""

import json
import tarfile
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple, cast

from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.host import storage
from owl3_jax.host.foreign import foreign_errors

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
VIDEO_EXTENSIONS = ("mp4", "mkv", "webm", "avi", "mov")
_TEXT_EXTENSIONS = ("txt", "caption")


class TarError(ValueError):
    """An archive that cannot be read; the message names it."""


class _Member(NamedTuple):
    """One file of an archive."""

    extension: str  # in lower case, after the last dot
    offset: int
    size: int


class TarTrees:
    """`Trees` of archives, one after the other."""

    def __init__(self, locations: Sequence[str]) -> None:
        """Reads the archives' headers. Raises TarError, or StorageError."""
        self._records = [(location, members) for location in locations for members in _index(location)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> object:
        location, members = self._records[index]
        with storage.open_binary(location) as file:

            def read(member: _Member) -> bytes:
                file.seek(member.offset)
                return file.read(member.size)

            images = [read(member) for member in members if member.extension in IMAGE_EXTENSIONS]
            videos = [read(member) for member in members if member.extension in VIDEO_EXTENSIONS]
            trees = [read(member) for member in members if member.extension == "json"]
            texts = [read(member) for member in members if member.extension in _TEXT_EXTENSIONS]
        media = {"images": images, "videos": videos}
        if trees:
            return _described(trees[0]) | {key: value for key, value in media.items() if value}
        if not texts:
            raise BadRecord(Problem("malformed", "it has neither .json nor .txt"))
        return caption(texts[0].decode("utf-8", "replace").strip(), len(images), len(videos)) | media


def caption(text: str, images: int, videos: int) -> dict[str, object]:
    """A conversation that shows media without a question, and is answered by their caption."""
    tags = "<image>" * images + "<video>" * videos
    return {"messages": [{"role": "user", "content": tags}, {"role": "assistant", "content": text}]}


def _described(encoded: bytes) -> dict[str, object]:
    try:
        tree = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise BadRecord(Problem("malformed", f"its .json is not valid: {error}")) from error
    if not isinstance(tree, dict):
        raise BadRecord(Problem("malformed", "its .json is not an object"))
    # Paths in it name files from before the archive was packed.
    return {key: value for key, value in tree.items() if key not in ("image", "images", "video", "videos")}


def _index(location: str) -> list[list[_Member]]:
    records: dict[str, list[_Member]] = {}
    with (
        foreign_errors(TarError, f"cannot read the archive {location}"),
        storage.open_binary(location) as file,
        tarfile.open(fileobj=cast(BinaryIO, file), mode="r:") as archive,
    ):
        for member in archive:
            folder, slash, name = member.name.rpartition("/")
            key, _, extension = name.partition(".")
            if member.isfile() and key:
                found = _Member(extension.rpartition(".")[2].lower(), member.offset_data, member.size)
                records.setdefault(folder + slash + key, []).append(found)
    return list(records.values())
