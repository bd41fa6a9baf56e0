"""Builds a data set's files under `data.data_dir`, once."""

from pathlib import Path

import tensorflow_datasets as tfds

from owl3_jax.config import DataConfig
from owl3_jax.data.datasets import find_dataset, make_builder


def prepare_dataset(config: DataConfig) -> Path | None:
    """Builds `config.dataset` when its files are missing, and returns their folder; None if it has no files.

    A build that is killed leaves no folder of that name: TFDS renames it when everything is written.
    """
    if find_dataset(config.dataset).builder is None:
        return None
    builder = make_builder(config)
    if not builder.data_path.exists():
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return Path(builder.data_path)
