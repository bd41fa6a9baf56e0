"""The data sets that `data.dataset` can name."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow_datasets as tfds

from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.digits.builder import Digits
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.processing.tokenizer import ChatTokenizer


class Dataset(NamedTuple):
    """How a data set is built, and the tokenizer its text is made for."""

    builder: Callable[..., tfds.core.DatasetBuilder]
    make_tokenizer: Callable[[], ChatTokenizer]


DATASETS = {"digits": Dataset(Digits, make_tokenizer)}


def find_dataset(name: str) -> Dataset:
    """The data set `name`. Raises ConfigError when there is none."""
    if name not in DATASETS:
        raise ConfigError(f"data.dataset {name!r} is unknown; it must be one of {', '.join(DATASETS)}")
    return DATASETS[name]


def make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    """The TFDS builder of `config.dataset`, for files under `config.data_dir`."""
    return find_dataset(config.dataset).builder(data_dir=config.data_dir, file_format="array_record")


def load_tokenizer(config: DataConfig) -> ChatTokenizer:
    """The tokenizer of `config.dataset`."""
    return find_dataset(config.dataset).make_tokenizer()
