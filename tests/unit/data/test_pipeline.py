"""The training iterator over records in memory: packing, resume, sharding, and records that cannot be used."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.digits.builder import make_record
from owl3_jax.data.digits.images import IMAGE_SIZE, split_ids
from owl3_jax.data.digits.samples import draw_sample
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import iterate_batches, process_record
from owl3_jax.data.readers.stored import RecordSource
from owl3_jax.data.unreadable import UnreadableImages
from owl3_jax.processing.batch import pack_batch
from owl3_jax.processing.images import UnreadableImage
from owl3_jax.processing.processor import Processor, Sample

CONFIG = DataConfig(rows=3, tokens_per_row=211, images_per_row=11, prefetch=2, seed=5)
SAMPLES = 41


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(make_tokenizer(), IMAGE_SIZE)


def stored_records() -> list[dict]:
    ids = split_ids("train")
    return [make_record(draw_sample(np.random.default_rng(seed), ids)) for seed in range(SAMPLES)]


def numbered_records(count: int) -> list[dict]:
    """Text-only records that can be told apart in a batch: the answer is the record's number."""
    messages = [[{"role": "user", "content": "digit"}, {"role": "assistant", "content": f"{i:03d}"}] for i in range(count)]
    return [{"messages": json.dumps(message), "images": [], "metadata": "{}"} for message in messages]


class Shard:
    """One host's iterator, closed at the end of the test."""

    def __init__(self, processor: Processor, records: list[dict], config: DataConfig = CONFIG, index: int = 0, count: int = 1):
        self.unreadable = UnreadableImages()
        source = RecordSource(records, "memory/train")
        self.iterator = iterate_batches(source, config, processor, index, count, self.unreadable)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.iterator.close()

    def take(self, batches: int) -> list[Batch]:
        return [next(self.iterator) for _ in range(batches)]


def samples_of(batch: Batch) -> list[list[Sample]]:
    """The samples of each row, cut out by their segment ids."""
    rows = []
    for row in range(len(batch.tokens)):
        samples = []
        for segment in range(1, batch.segment_ids[row].max(initial=0) + 1):
            text, image = batch.segment_ids[row] == segment, batch.image_segment_ids[row] == segment
            weights = batch.loss_weights[row, text].astype(bool)
            starts, pixels = batch.image_positions[row, image], batch.pixels[row, image]
            samples.append(Sample(batch.tokens[row, text], starts, pixels, weights))
        rows.append(samples)
    return rows


def numbers_of(processor: Processor, batch: Batch) -> list[str]:
    samples = [sample for row in samples_of(batch) for sample in row]
    return [processor.tokenizer.decode(sample.input_ids[sample.labels]).replace(" ", "") for sample in samples]


def assert_equal_batches(batches: list[Batch], others: list[Batch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        for array, expected in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype


@pytest.mark.parametrize("pack", [True, False])
def test_batches_have_the_form_that_packing_by_hand_gives(processor, pack):
    config = dataclasses.replace(CONFIG, pack=pack)
    with Shard(processor, stored_records(), config) as shard:
        batches = shard.take(5)
    for batch in batches:
        rows = samples_of(batch)
        expected = pack_batch(rows, tokens_per_row=211, images_per_row=11, image_size=IMAGE_SIZE)
        assert_equal_batches([batch], [expected])
        assert all(len(row) == 1 for row in rows) is not pack


def test_packed_samples_are_the_processed_records_each_once(processor):
    source = RecordSource(stored_records(), "memory/train")
    processed = [process_record(source[i], processor, training=True) for i in range(SAMPLES)]
    with Shard(processor, stored_records(), CONFIG) as shard:
        packed = [sample for batch in shard.take(11) for row in samples_of(batch) for sample in row]
    expected = {fingerprint(sample) for sample in processed}
    assert len(expected) == SAMPLES < len(packed)
    assert {fingerprint(sample) for sample in packed} == expected


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("done", [0, 1, 4, 9])
def test_a_restored_iterator_continues_exactly(processor, pack, done):
    """Mid-epoch and, with nine batches, in the second epoch; the state goes through JSON as it does in a checkpoint."""
    config = dataclasses.replace(CONFIG, pack=pack)
    records = stored_records()
    records[7]["images"] = [b"damaged"]
    with Shard(processor, records, config) as straight, Shard(processor, records, config) as resumed:
        straight.take(done)
        state = json.loads(json.dumps(straight.iterator.get_state()))
        resumed.take(2)  # wherever it was
        resumed.iterator.set_state(state)
        assert_equal_batches(resumed.take(7), straight.take(7))


def test_the_seed_decides_everything(processor):
    other_seed = dataclasses.replace(CONFIG, seed=6)
    with (
        Shard(processor, stored_records()) as one,
        Shard(processor, stored_records()) as same,
        Shard(processor, stored_records(), other_seed) as other,
    ):
        batches = one.take(4)
        assert_equal_batches(same.take(4), batches)
        assert not np.array_equal(other.take(1)[0].tokens, batches[0].tokens)


def test_shards_cover_every_record_once_in_every_epoch(processor):
    """Each of three hosts reads seven records an epoch, which fill its share of one batch."""
    config = DataConfig(rows=21, tokens_per_row=23, images_per_row=1, pack=False, prefetch=1)
    everything = sorted(f"{i:03d}" for i in range(21))
    shards = [Shard(processor, numbered_records(21), config, index, count=3) for index in range(3)]
    epochs = []
    for _ in range(2):
        batches = [shard.take(1)[0] for shard in shards]
        assert [len(batch.tokens) for batch in batches] == [7, 7, 7]
        epochs.append([number for batch in batches for number in numbers_of(processor, batch)])
    for shard in shards:
        shard.iterator.close()
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert everything != epochs[0] != epochs[1] != everything  # both are shuffled, each in its own order


def test_rows_must_divide_among_hosts(processor):
    with pytest.raises(ConfigError, match=r"data\.rows 3 must be a multiple of the number of hosts, 2"):
        Shard(processor, stored_records(), index=0, count=2)


def test_a_record_with_a_damaged_image_is_skipped_named_and_counted(processor, caplog):
    config = DataConfig(rows=5, tokens_per_row=199, images_per_row=1, pack=False, prefetch=1)
    records = numbered_records(6)
    messages = [{"role": "user", "content": "<|image|>"}, {"role": "assistant", "content": "999"}]
    records[2] = {"messages": json.dumps(messages), "images": [b"\x89PNG\r\n\x1a\n damaged"], "metadata": "{}"}
    with Shard(processor, records, config) as shard, caplog.at_level(logging.WARNING, logger="owl3_jax.data"):
        (batch,) = shard.take(1)  # an epoch, one record of which is skipped
        assert shard.unreadable.count >= 1
    assert sorted(numbers_of(processor, batch)) == ["000", "001", "003", "004", "005"]
    assert "skipped memory/train[2]: cannot read image 0 of memory/train[2]" in caplog.messages[0]


def test_a_damaged_image_is_fatal_outside_training(processor):
    record = {**stored_records()[0], "images": [b"damaged"]}
    with pytest.raises(UnreadableImage, match=r"image 0 of memory/test\[0\]"):
        process_record(RecordSource([record], "memory/test")[0], processor, training=False)


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_is_unreadable_throughout_stops_instead_of_looping(processor, caplog):
    caplog.set_level(logging.CRITICAL)
    records = [{**record, "images": [b"damaged"]} for record in stored_records()]
    with Shard(processor, records) as shard, pytest.raises(ValueError, match=r"skipped 100\.00 %"):
        shard.take(1)


@pytest.mark.parametrize(
    ("field", "size", "complaint"),
    [
        ("tokens_per_row", 19, r"memory/train\[\d+\] has \d+ tokens, 19 are left in its row; raise tokens_per_row"),
        ("images_per_row", 1, r"memory/train\[\d+\] has \d images, 1 are left in its row; raise images_per_row"),
    ],
)
def test_a_record_too_large_for_a_row_is_named(processor, field, size, complaint):
    with (
        Shard(processor, stored_records(), dataclasses.replace(CONFIG, **{field: size})) as shard,
        pytest.raises(ValueError, match=complaint),
    ):
        shard.take(3)


def test_a_record_whose_images_do_not_match_its_text_is_an_error(processor):
    record = stored_records()[0]
    with (
        Shard(processor, [{**record, "images": record["images"] * 2}]) as shard,
        pytest.raises(
            ValueError, match=r"memory/train\[0\]: the messages have \d <\|image\|> placeholders, but \d+ images were given"
        ),
    ):
        shard.take(1)


def fingerprint(sample: Sample) -> tuple[bytes, ...]:
    return tuple(field.tobytes() for field in sample)
