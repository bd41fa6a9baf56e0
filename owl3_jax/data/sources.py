"""Stored records, by index: what every data set looks like to the pipeline."""

import json
from typing import Any, NamedTuple

from owl3_jax.config import DataConfig
from owl3_jax.data.datasets import StoredRecords, find_dataset, make_builder
from owl3_jax.processing.chat import Message


class Record(NamedTuple):
    """One conversation as stored."""

    name: str  # data set, split and index, for messages
    messages: list[Message]
    images: list[bytes]  # encoded, in text order
    metadata: dict[str, Any]


class RecordSource:
    """Random access to stored records, named after their data set and split: a grain data source."""

    def __init__(self, stored: StoredRecords, name: str) -> None:
        self._stored = stored
        self._name = name

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Record:
        stored = self._stored[index]
        messages, metadata = json.loads(stored["messages"]), json.loads(stored["metadata"])
        return Record(f"{self._name}[{index}]", messages, list(stored["images"]), metadata)


def open_records(config: DataConfig, split: str) -> RecordSource:
    """The records of a data set's split. Raises FileNotFoundError when they are to be prepared and are not."""
    name, generate = f"{config.dataset}/{split}", find_dataset(config.dataset).generate
    if generate is not None:
        return RecordSource(generate(config), name)
    builder = make_builder(config)
    if not builder.data_path.exists():
        raise FileNotFoundError(f"no data set in {builder.data_path}; prepare it with owl3_jax.data.prepare.prepare_dataset")
    return RecordSource(builder.as_data_source(split=split), name)
