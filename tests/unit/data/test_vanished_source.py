"""A file that is missing costs its record; a source that is missing costs nothing, because the run ends."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import TrainIterator, make_train_iterator
from owl3_jax.host.storage import StorageError
from owl3_jax.processing.processor import Processor

RECORDS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(RECORDS):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        asked = {"role": "user", "content": "<image>Which digit is red?"}
        lines.append(
            json.dumps({"messages": [asked, {"role": "assistant", "content": "red 1"}], "images": [f"images/{number}.png"]})
        )
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@contextlib.contextmanager
def reading(folder: Path, **source: str) -> Iterator[TrainIterator]:
    sources = (dataclasses.replace(SourceConfig(str(folder / "records.jsonl")), **source),)
    config = DataConfig(sources=sources, rows=1, tokens_per_row=64, images_per_row=1, pack_ahead=1, prefetch=1, max_skipped=1.0)
    with contextlib.closing(make_train_iterator(config, Processor(make_tokenizer(), 8))) as batches:
        yield batches


def read_all(batches: TrainIterator) -> None:
    for _ in range(2 * RECORDS):
        next(batches)


def test_a_missing_file_is_skipped(folder: Path) -> None:
    (folder / "images" / "3.png").unlink()
    with reading(folder) as batches:
        read_all(batches)
        assert batches.counts.skipped >= 1


@pytest.mark.parametrize("gone", ["the source", "the folder of its media"])
def test_a_source_that_vanishes_ends_the_run_and_loses_no_record(folder: Path, gone: str) -> None:
    media = folder.with_name("media")
    (folder / "images").rename(media)
    for path in ("images", "."):
        (media / path).mkdir(exist_ok=True)
    for path in media.glob("*.png"):
        path.rename(media / "images" / path.name)
    with reading(folder, media_root=str(media)) as batches:
        next(batches)
        before = batches.states.copy()
        (media if gone == "the folder of its media" else folder).rename(folder.with_name("away"))
        if gone == "the source":
            media.rename(folder.with_name("away, too"))
        with pytest.raises(StorageError, match=r"gone|records\.jsonl"):
            read_all(batches)
        assert batches.counts.skipped == 0 and batches.states.shape == before.shape
