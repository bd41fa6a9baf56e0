"""Where records come from: a data set that is named in `NAMED`, or files and folders, whose format is found out.

    *.jsonl, *.json            ms-swift, LLaVA, ShareGPT, OpenAI (`readers.conversations`)
    *.parquet, *.arrow         the same as tables; a folder of them, as Hugging Face `datasets` has it
    *.tar                      WebDataset
    folder of TFDS             its ArrayRecord files, with the features of `readers.stored`
    folder of media            images or videos with captions

A pattern (`part-*.tar`) is all files that match. Everything can be where fsspec reads: gs://, s3://, ...
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Protocol, runtime_checkable

import tensorflow_datasets as tfds

from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data.digits.builder import Digits
from owl3_jax.data.readers.captions import is_medium, suffix_of
from owl3_jax.data.readers.conversations import ConversationRecords
from owl3_jax.data.readers.json_files import JsonFileError, JsonTrees
from owl3_jax.data.readers.media_folder import LISTS, MediaFolderTrees, MediaListError
from owl3_jax.data.readers.records import Records, Trees
from owl3_jax.data.readers.stored import RecordSource, StoredError, StoredRecords
from owl3_jax.data.readers.tables import TableError, TableTrees
from owl3_jax.data.readers.webdataset import TarError, TarTrees
from owl3_jax.data.synthetic import SyntheticRecords
from owl3_jax.host import storage
from owl3_jax.host.foreign import foreign_errors

_FORMATS: dict[str, Callable[[Sequence[str]], Trees]] = {
    ".json": JsonTrees,
    ".jsonl": JsonTrees,
    ".ndjson": JsonTrees,
    ".parquet": TableTrees,
    ".arrow": TableTrees,
    ".tar": TarTrees,
}
_TFDS_FILES = ("dataset_info.json", "features.json")
_PIECES, _PIECE = 64, 2**20  # of a large file, in a fingerprint; bytes
_SPLITS = ("train", "validation", "val", "test", "dev")


@runtime_checkable
class NamedSource(Protocol):
    """Where the records of a data set with a name come from."""

    def prepare(self, config: DataConfig) -> Path | None:
        """Makes the data set's files where they are missing, and returns their folder; None if it has no files."""

    def open(self, config: DataConfig, name: str, split: str) -> Records:
        """The records of a split. Raises FileNotFoundError when they have files that are not prepared."""


@dataclasses.dataclass(frozen=True)
class BuiltSource:
    """Records in files that a TFDS builder writes below `data.data_dir`."""

    builder: Callable[..., tfds.core.DatasetBuilder]

    def prepare(self, config: DataConfig) -> Path:
        """Builds the files once. A build that is killed leaves none: TFDS renames their folder when everything is written."""
        builder = self._builder(config)
        if not builder.data_path.exists():
            tfds.disable_progress_bar()
            builder.download_and_prepare()
        return Path(builder.data_path)

    def open(self, config: DataConfig, name: str, split: str) -> RecordSource:
        """The records of a split. Raises FileNotFoundError when they are not built."""
        builder = self._builder(config)
        if not builder.data_path.exists():
            raise FileNotFoundError(f"no data set in {builder.data_path}; prepare it with {__name__}.prepare_sources")
        return RecordSource(builder.as_data_source(split=split), f"{name}/{split}")

    def _builder(self, config: DataConfig) -> tfds.core.DatasetBuilder:
        return self.builder(data_dir=config.data_dir, file_format="array_record")


@dataclasses.dataclass(frozen=True)
class GeneratedSource:
    """Records that are made when they are read, the same for every split."""

    generate: Callable[[DataConfig], StoredRecords]

    def prepare(self, config: DataConfig) -> None:
        """There are no files."""

    def open(self, config: DataConfig, name: str, split: str) -> RecordSource:
        """The records. Raises ConfigError when the rows of `config` cannot hold them."""
        return RecordSource(self.generate(config), f"{name}/{split}")


NAMED: dict[str, NamedSource] = {
    "digits": BuiltSource(Digits),
    "synthetic": GeneratedSource(SyntheticRecords),
}


def prepare_sources(config: DataConfig) -> list[Path]:
    """Makes the files of named data sets where they are missing, and returns their folders."""
    named = [NAMED[source.path] for source in config.sources if source.path in NAMED]
    folders = [source.prepare(config) for source in named]
    return [folder for folder in folders if folder is not None]


def open_source(source: SourceConfig, config: DataConfig) -> Records:
    """The records of a source.

    Raises:
        ConfigError: there is no such data set, file or folder, its format is unknown, or it holds no records.
        FileNotFoundError: a named data set is not prepared.
    """
    if source.path in NAMED:
        return NAMED[source.path].open(config, source.path, source.split)
    try:
        records = _open_files(source)
    except (storage.StorageError, JsonFileError, MediaListError, StoredError, TableError, TarError) as error:
        raise ConfigError(f"data.sources: {error}") from error
    if not len(records):
        raise ConfigError(f"data.sources: {source.path} holds no records of the split {source.split!r}")
    return records


def require_present(source: SourceConfig) -> None:
    """Raises StorageError when the files of a source that was open are gone, or the folder that its media are in."""
    try:
        locations = locations_of(source)
    except ConfigError as error:
        raise storage.StorageError(f"{source.path} was there when it was opened, and is gone: {error}") from error
    if locations:
        folder = source.media_root or (locations[0] if storage.is_folder(locations[0]) else storage.parent(locations[0]))
        if not storage.exists(folder):
            raise storage.StorageError(f"the folder {folder}, of the media of {source.path}, is gone")


def _open_files(source: SourceConfig) -> Records:
    locations = locations_of(source)
    if storage.is_folder(locations[0]):
        return _open_folder(locations[0], source)
    readers = {_FORMATS.get(suffix_of(location)) for location in locations}
    read = readers.pop()
    if read is None or readers:
        raise ConfigError(f"data.sources: {source.path} {_format_help(locations)}")
    return _conversations(read(locations), source, storage.parent(locations[0]))


def locations_of(source: SourceConfig) -> list[str]:
    """The files that a source's pattern matches, or its one file or folder; none for a named data set.

    Raises ConfigError when there is nothing.
    """
    path = source.path
    if path in NAMED:
        return []
    if storage.exists(path):
        return [path]
    found = storage.find(path) if any(letter in path for letter in "*?[") else []
    if not found:
        names = ", ".join(NAMED)
        raise ConfigError(f"data.sources: there is no file or folder {path!r}, and no data set of that name ({names})")
    return found


def _open_folder(folder: str, source: SourceConfig) -> Records:
    if all(storage.exists(storage.join(folder, name)) for name in _TFDS_FILES):
        return _open_stored(folder, source)
    for read, patterns in ((TableTrees, ("**/*.parquet", "**/*.arrow")), (TarTrees, ("*.tar",))):
        files = [path for pattern in patterns for path in storage.find(storage.join(folder, pattern))]
        if files:
            return _conversations(read(_of_this_split(files, folder, source.split)), source, folder)
    names = storage.find(storage.join(folder, "*"))
    if any(is_medium(path) or PurePath(path).name in LISTS for path in names):
        return _conversations(MediaFolderTrees(folder), source, folder)
    raise ConfigError(f"data.sources: {_format_help([folder])}")


def _conversations(trees: Trees, source: SourceConfig, folder: str) -> ConversationRecords:
    return ConversationRecords(trees, source.path, source.media_root or folder, source.columns, source.system)


def _of_this_split(paths: list[str], folder: str, split: str) -> list[str]:
    """The files of a split, where their names or folders say to which they belong; otherwise all."""

    def split_of(path: str) -> str | None:
        within = path[len(folder) :] if path.startswith(folder) else path
        words = [word for part in PurePath(within).parts for word in part.replace(".", "-").replace("_", "-").split("-")]
        return next((word for word in words if word in _SPLITS), None)

    by_split = [path for path in paths if split_of(path) == split]
    return by_split if by_split or any(split_of(path) for path in paths) else paths


def _format_help(locations: list[str]) -> str:
    known = ", ".join(f"*{suffix}" for suffix in _FORMATS)
    return f"{locations[0]} is in no format that is read: {known}, folders of tables, of TFDS, or of media with captions"


def _open_stored(folder: str, source: SourceConfig) -> Records:
    with foreign_errors(StoredError, f"cannot read the data set in {folder}"):
        builder = tfds.builder_from_directory(folder)
        splits, features = {name: split.num_examples for name, split in builder.info.splits.items()}, [*builder.info.features]
    if missing := [name for name in ("messages", "images", "metadata") if name not in features]:
        raise ConfigError(
            f"data.sources: the data set in {folder} has the features {', '.join(features)}, but not {', '.join(missing)}; "
            "`owl3 data prepare` writes those that are read"
        )
    if source.split not in splits:
        raise ConfigError(f"data.sources: {folder} has no split {source.split!r}; it has {', '.join(splits)}")
    if not splits[source.split]:
        return RecordSource((), source.path)  # whose files TFDS does not open
    with foreign_errors(StoredError, f"cannot read the data set in {folder}"):
        stored = builder.as_data_source(split=source.split)
        len(stored)
    return RecordSource(stored, f"{source.path}/{source.split}")


def fingerprint(source: SourceConfig) -> str:
    """A digest of what a source's records are read from: the names, sizes and content of its files, but not of media.

    Of a file of more than 64 MiB it takes 64 pieces of 1 MiB, evenly spaced, so that what takes hours to read does not take
    hours to begin. Raises StorageError.
    """
    digest = hashlib.blake2b(repr((source.path, source.split)).encode())
    for location in locations_of(source):
        for name, size in storage.sizes(location).items():
            if is_medium(name):
                continue
            digest.update(repr((name, size)).encode())
            with storage.open_binary(name) as file:
                for place in _sampled(size):
                    file.seek(place)
                    digest.update(file.read(_PIECE))
    return digest.hexdigest()


def _sampled(size: int) -> list[int]:
    """Where the pieces of a file begin that are read for its fingerprint."""
    if size <= _PIECES * _PIECE:
        return list(range(0, size, _PIECE))
    return [number * (size - _PIECE) // (_PIECES - 1) for number in range(_PIECES)]
