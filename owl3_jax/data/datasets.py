"""The data sets that `data.dataset` can name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tensorflow_datasets as tfds

from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.digits.builder import Digits
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.synthetic import SyntheticRecords
from owl3_jax.processing.tokenizer import ChatTokenizer


@runtime_checkable
class StoredRecords(Protocol):
    """Records in the form that builders write, by index: read from files, or made on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Dataset(NamedTuple):
    """The tokenizer that a data set's text is made for, and either of two ways to its records."""

    make_tokenizer: Callable[[], ChatTokenizer]
    builder: Callable[..., tfds.core.DatasetBuilder] | None = None  # of records in files
    generate: Callable[[DataConfig], StoredRecords] | None = None  # of records that are made while they are read


DATASETS = {
    "digits": Dataset(make_tokenizer, builder=Digits),
    "synthetic": Dataset(make_tokenizer, generate=SyntheticRecords),
}


def find_dataset(name: str) -> Dataset:
    """The data set `name`. Raises ConfigError when there is none."""
    if name not in DATASETS:
        raise ConfigError(f"data.dataset {name!r} is unknown; it must be one of {', '.join(DATASETS)}")
    return DATASETS[name]


def make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    """The TFDS builder of `config.dataset`, for files under `config.data_dir`. Raises ConfigError when it has no files."""
    builder = find_dataset(config.dataset).builder
    if builder is None:
        raise ConfigError(f"data.dataset {config.dataset!r} has no files: its records are made while they are read")
    return builder(data_dir=config.data_dir, file_format="array_record")


def load_tokenizer(config: DataConfig) -> ChatTokenizer:
    """The tokenizer of `config.dataset`."""
    return find_dataset(config.dataset).make_tokenizer()
