"""The data set as it is really built: its records, and the proof that no test picture is in a training record."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data.digits.builder import PARTS
from owl3_jax.data.digits.images import COLOURS, digit_image, encoded_image, split_ids
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.readers.records import Record
from owl3_jax.data.samples import consider
from owl3_jax.data.sources import open_source, prepare_sources
from owl3_jax.processing.chat import chat_chunks
from owl3_jax.processing.processor import Processor


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> DataConfig:
    config = DataConfig(data_dir=str(tmp_path_factory.mktemp("data")), images_per_row=16)
    prepare_sources(config)
    return config


@pytest.fixture(scope="module")
def records(config) -> dict[str, list[Record]]:
    """All records that were stored."""
    return {split: list(iterate(open_source(SourceConfig("digits", split=split), config))) for split in PARTS}


def iterate(source):
    return (source[index] for index in range(len(source)))


def test_all_splits_have_their_samples(records):
    assert {split: len(stored) for split, stored in records.items()} == {split: part.samples for split, part in PARTS.items()}


def test_no_test_picture_is_in_any_training_record(records):
    """By the ids in the metadata, and by the stored bytes: no held-out picture is there in any colour."""
    held_out = set(split_ids("test").tolist())
    held_out_bytes = {encoded_image(digit_image(image_id, colour)) for image_id in held_out for colour in COLOURS}
    training = [record for split in ("train", "few", "many") for record in records[split]]
    shown = {encoded for record in training for encoded in record.images}
    assert not {image_id for record in training for image_id in record.metadata["image_ids"]} & held_out
    assert not shown & held_out_bytes


def test_every_training_picture_is_used_and_test_records_show_held_out_ones_only(records):
    used = {split: {i for record in stored for i in record.metadata["image_ids"]} for split, stored in records.items()}
    assert used["train"] == set(split_ids("train").tolist())
    assert used["test"] <= set(split_ids("test").tolist())


def test_records_fit_rows_of_149_tokens_and_8_images_but_those_with_many(records):
    tokenizer = make_tokenizer()
    for split, tokens, images in (("train", 149, 8), ("few", 120, 2), ("many", 232, 16)):
        texts = [chat_chunks(record.messages, training=True) for record in records[split][:5000]]
        assert tokens - 30 < max(len(tokenizer.encode(text).input_ids) for text in texts) <= tokens
        assert max(len(record.images) for record in records[split]) == images


def test_stored_images_are_those_of_the_metadata(records):
    for record in records["test"]:
        metadata = record.metadata
        images = [digit_image(i, colour) for i, colour in zip(metadata["image_ids"], metadata["colours"], strict=True)]
        assert record.images == [encoded_image(image) for image in images]
        assert metadata["digits"] == [image.digit for image in images]
        answers = [message["content"] for message in record.messages if message["role"] == "assistant"]
        assert metadata["answers"] == answers
        assert len(metadata["kinds"]) == len(answers)


def test_colour_answers_are_true(records):
    """Read from the stored text and metadata alone, without the functions that made them."""
    checked = 0
    for record in records["train"]:
        digit_of = dict(zip(record.metadata["colours"], record.metadata["digits"], strict=True))
        for user, assistant in zip(record.messages[::2], record.messages[1::2], strict=True):
            if "Which digit is" in user["content"]:
                colour, digit = assistant["content"].split()[:2]
                assert f"is {colour}?" in user["content"]
                assert digit_of[colour] == int(digit)
                checked += 1
    assert checked > len(records["train"]) / 3


def test_records_process_into_samples(config, records):
    record = records["test"][0]
    sample = consider(record, config, config.sources[0], Processor(make_tokenizer(), 8)).read()
    assert len(sample.image_starts) == len(record.images)
    stored = np.asarray(Image.open(io.BytesIO(record.images[0])))
    np.testing.assert_array_equal(sample.pixel_values[0], stored)


def test_a_prepared_data_set_is_not_built_again(config):
    (folder,) = prepare_sources(config)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_sources(config) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_it_is_stored_as_array_record_and_small(config):
    files = list(prepare_sources(config)[0].iterdir())
    assert sum(".array_record-" in file.name for file in files) == len(PARTS)
    assert sum(file.stat().st_size for file in files) < 60e6
    info = json.loads(next(file for file in files if file.name == "dataset_info.json").read_text())
    assert info["name"] == "digits"


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set in .*digits"):
        open_source(SourceConfig("digits"), DataConfig(data_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"no file or folder 'digit', and no data set of that name \(digits, synthetic\)"):
        open_source(SourceConfig("digit"), DataConfig())
