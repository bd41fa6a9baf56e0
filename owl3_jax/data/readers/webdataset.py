"""Trees in WebDataset tars: files with the same name before the first dot are one record.

`000.json` holds the conversation and `000.jpg`, `000.1.jpg`, ... its images in the order of the archive; or `000.txt` the
caption of `000.jpg` or `000.mp4`. The archive is gone through once for the places of its files; then records are read from
there.
"""

import tarfile
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple, cast

from owl3_jax.data.readers.captions import VIDEO_SUFFIXES, captioned, decoded_caption, suffix_of
from owl3_jax.data.readers.json_files import parse_tree
from owl3_jax.data.readers.records import BadRecord, Problem
from owl3_jax.host import storage
from owl3_jax.host.foreign import foreign_errors
from owl3_jax.processing.video import IMAGE_SUFFIXES

_PADDING = 2**20  # bytes after the last member that are looked at
_TEXT_SUFFIXES = (".txt", ".caption")


class TarError(ValueError):
    """An archive that cannot be read; the message names it."""


class _Member(NamedTuple):
    """One file of an archive."""

    suffix: str
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

            images = [read(member) for member in members if member.suffix in IMAGE_SUFFIXES]
            videos = [read(member) for member in members if member.suffix in VIDEO_SUFFIXES]
            trees = [read(member) for member in members if member.suffix == ".json"]
            texts = [read(member) for member in members if member.suffix in _TEXT_SUFFIXES]
        media = {"images": images, "videos": videos}
        if trees:
            return _described(trees[0]) | {key: value for key, value in media.items() if value}
        if not texts:
            raise BadRecord(Problem("malformed", "it has neither .json nor .txt"))
        tags = "<image>" * len(images) + "<video>" * len(videos)
        return captioned(tags, decoded_caption(texts[0], "its text")) | media


def _described(encoded: bytes) -> dict[str, object]:
    tree = parse_tree(encoded, "its .json")
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
            key = name.partition(".")[0]
            if member.isfile() and key:
                found = _Member(suffix_of(name), member.offset_data, member.size)
                records.setdefault(folder + slash + key, []).append(found)
        # tarfile takes a header that is cut off or damaged for the end.
        file.seek(archive.offset)
        rest = file.read(_PADDING)
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
            raise TarError(f"the archive {location} is cut off, damaged or followed by another one at byte {archive.offset}")
    return list(records.values())
