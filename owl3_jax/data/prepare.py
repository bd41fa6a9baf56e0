"""Builds a data set's files under `data.data_dir`, once."""

from pathlib import Path

import tensorflow_datasets as tfds

from owl3_jax.config import DataConfig
from owl3_jax.data.datasets import make_builder


def prepare_dataset(config: DataConfig) -> Path:
    """Builds `config.dataset` when its files are missing, and returns their folder.

    A build that is killed leaves no folder of that name: TFDS renames it when everything is written.
    """
    builder = make_builder(config)
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return Path(builder.data_path)
