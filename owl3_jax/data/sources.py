"""The data sets that `data.dataset` can name, and where their records come from.

A data set is a row of `SOURCES`. Its source is one of the classes below, or another one with the same two methods: `prepare`
makes the files that are missing, `open` gives a split's records through a reader (`owl3_jax.data.readers`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import tensorflow_datasets as tfds

from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.digits.builder import Digits
from owl3_jax.data.readers.records import Records
from owl3_jax.data.readers.stored import RecordSource, StoredRecords
from owl3_jax.data.synthetic import SyntheticRecords


@runtime_checkable
class Source(Protocol):
    """Where the records of a data set come from."""

    def prepare(self, config: DataConfig) -> Path | None:
        """Makes the data set's files where they are missing, and returns their folder; None if it has no files."""

    def open(self, config: DataConfig, split: str) -> Records:
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

    def open(self, config: DataConfig, split: str) -> RecordSource:
        """The records of a split. Raises FileNotFoundError when they are not built."""
        builder = self._builder(config)
        if not builder.data_path.exists():
            raise FileNotFoundError(f"no data set in {builder.data_path}; prepare it with {__name__}.prepare_dataset")
        return RecordSource(builder.as_data_source(split=split), f"{config.dataset}/{split}")

    def _builder(self, config: DataConfig) -> tfds.core.DatasetBuilder:
        return self.builder(data_dir=config.data_dir, file_format="array_record")


@dataclasses.dataclass(frozen=True)
class GeneratedSource:
    """Records that are made when they are read, the same for every split."""

    generate: Callable[[DataConfig], StoredRecords]

    def prepare(self, config: DataConfig) -> None:
        """There are no files."""

    def open(self, config: DataConfig, split: str) -> RecordSource:
        """The records. Raises ConfigError when the rows of `config` cannot hold them."""
        return RecordSource(self.generate(config), f"{config.dataset}/{split}")


SOURCES: dict[str, Source] = {
    "digits": BuiltSource(Digits),
    "synthetic": GeneratedSource(SyntheticRecords),
}


def find_source(name: str) -> Source:
    """The source of the data set `name`. Raises ConfigError when there is none."""
    if name not in SOURCES:
        raise ConfigError(f"data.dataset {name!r} is unknown; it must be one of {', '.join(SOURCES)}")
    return SOURCES[name]


def prepare_dataset(config: DataConfig) -> Path | None:
    """Makes the files of `config.dataset` where they are missing, and returns their folder; None if it has no files."""
    return find_source(config.dataset).prepare(config)


def open_records(config: DataConfig, split: str) -> Records:
    """The records of a split of `config.dataset`. Raises FileNotFoundError when they have files that are not prepared."""
    return find_source(config.dataset).open(config, split)
