"""The training iterator over records in memory: packing, resume, sharding, and records that cannot be used."""

import dataclasses
import io
import json
import logging
import multiprocessing
import multiprocessing.connection
import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data import pipeline
from owl3_jax.data.digits.builder import make_record
from owl3_jax.data.digits.images import IMAGE_SIZE, split_ids
from owl3_jax.data.digits.samples import draw_sample
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.data.pipeline import iterate_batches
from owl3_jax.data.readers.stored import RecordSource
from owl3_jax.data.samples import consider
from owl3_jax.data.skipped import TooManySkippedError
from owl3_jax.processing.batch import pack_batch
from owl3_jax.processing.images import load_image, squash
from owl3_jax.processing.processor import Processor, Sample

CONFIG = DataConfig(rows=3, tokens_per_row=211, images_per_row=11, prefetch=2, seed=5)
SAMPLES = 41
SOURCE = SourceConfig("memory")


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
    """The iterator of some of the rows, by default all; closed at the end of the test."""

    def __init__(
        self,
        processor: Processor,
        records: list[dict],
        config: DataConfig = CONFIG,
        lanes: Sequence[int] | None = None,
        states: np.ndarray | None = None,
    ):
        source = RecordSource(records, "memory/train")
        self.iterator = iterate_batches({SOURCE: source}, config, processor, lanes, states)

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
        for array, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
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
    processed = [consider(source[i], CONFIG, SOURCE, processor).read() for i in range(SAMPLES)]
    with Shard(processor, stored_records(), CONFIG) as shard:
        packed = [sample for batch in shard.take(11) for row in samples_of(batch) for sample in row]
    expected = {fingerprint(sample) for sample in processed}
    assert len(expected) == SAMPLES < len(packed)
    assert {fingerprint(sample) for sample in packed} == expected


@pytest.mark.parametrize(
    "pack, done, workers", [*((pack, done, 0) for pack in (True, False) for done in (0, 1, 4, 9)), (True, 4, 2)]
)
def test_a_restored_iterator_continues_exactly(processor, pack, done, workers):
    """Mid-epoch and, with nine batches, in the second epoch."""
    config = dataclasses.replace(CONFIG, pack=pack, workers=workers)
    records = stored_records()
    records[7]["images"] = [b"damaged"]
    with Shard(processor, records, config) as straight:
        straight.take(done)
        with Shard(processor, records, config, states=straight.iterator.states.copy()) as resumed:
            assert_equal_batches(resumed.take(7), straight.take(7))
            np.testing.assert_array_equal(resumed.iterator.states, straight.iterator.states)


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


def test_hosts_cover_every_record_once_in_every_epoch(processor):
    """Each of three hosts reads seven records an epoch, which fill its rows of one batch."""
    config = DataConfig(rows=21, tokens_per_row=23, images_per_row=1, pack=False, prefetch=1)
    everything = sorted(f"{i:03d}" for i in range(21))
    shards = [Shard(processor, numbered_records(21), config, range(7 * index, 7 * index + 7)) for index in range(3)]
    epochs = []
    for _ in range(2):
        batches = [shard.take(1)[0] for shard in shards]
        assert [len(batch.tokens) for batch in batches] == [7, 7, 7]
        epochs.append([number for batch in batches for number in numbers_of(processor, batch)])
    for shard in shards:
        shard.iterator.close()
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert everything != epochs[0] != epochs[1] != everything  # both are shuffled, each in its own order


def test_a_record_with_a_damaged_image_is_skipped_named_and_counted(processor, caplog):
    config = DataConfig(rows=5, tokens_per_row=199, images_per_row=1, pack=False, prefetch=1)
    records = numbered_records(6)
    messages = [{"role": "user", "content": "<|image|>"}, {"role": "assistant", "content": "999"}]
    records[2] = {"messages": json.dumps(messages), "images": [b"\x89PNG\r\n\x1a\n damaged"], "metadata": "{}"}
    with Shard(processor, records, config) as shard, caplog.at_level(logging.WARNING, logger="owl3_jax.data"):
        batches = shard.take(2)  # more than an epoch, one record of which is skipped
        assert shard.iterator.counts.skipped >= 1
        assert set(shard.iterator.skips()) == {("memory", "unreadable-image")}
    found = [number for batch in batches for number in numbers_of(processor, batch)]
    assert set(found) == {"000", "001", "003", "004", "005"} and len(found) == 10
    assert "skipped memory/train[2]: cannot read image 0: " in caplog.messages[0]


def test_a_data_set_that_is_unreadable_throughout_stops_instead_of_looping(processor, caplog):
    caplog.set_level(logging.CRITICAL)
    records = [{**record, "images": [b"damaged"] * len(record["images"])} for record in stored_records()]
    with (
        Shard(processor, records) as shard,
        pytest.raises(TooManySkippedError, match="all samples of memory were skipped, so there is nothing to train on"),
    ):
        shard.take(1)


def test_training_without_a_usable_record_ends(processor):
    config = dataclasses.replace(CONFIG, max_skipped=1.0)
    records = [{**record, "images": [b"damaged"] * len(record["images"])} for record in stored_records()]
    with (
        Shard(processor, records, config) as shard,
        pytest.raises(TooManySkippedError, match="all samples of memory were skipped"),
    ):
        shard.take(1)


@pytest.mark.parametrize(
    ("field", "size", "complaint"),
    [
        (
            "tokens_per_row",
            19,
            r"memory/train\[\d+\]: it has \d+ tokens, a row 19 .*Raise that, or set",
        ),
        (
            "images_per_row",
            1,
            r"memory/train\[\d+\]: it has \d images, a row 1 .*Raise that, or set",
        ),
    ],
)
def test_a_record_too_large_for_a_row_is_named(processor, field, size, complaint):
    with (
        Shard(processor, stored_records(), dataclasses.replace(CONFIG, **{field: size})) as shard,
        pytest.raises(ConfigError, match=complaint),
    ):
        shard.take(3)


def test_a_record_whose_images_do_not_match_its_text_is_skipped_and_named(processor, caplog):
    records = numbered_records(6)
    messages = [{"role": "user", "content": "digit"}, {"role": "assistant", "content": "999"}]
    records[4] = {"messages": json.dumps(messages), "images": [b"never opened"], "metadata": "{}"}
    config = DataConfig(rows=5, tokens_per_row=199, images_per_row=1, pack=False, prefetch=1)
    with Shard(processor, records, config) as shard, caplog.at_level(logging.WARNING, logger="owl3_jax.data"):
        batches = shard.take(2)
    assert not any("999" in numbers_of(processor, batch) for batch in batches)
    assert "skipped memory/train[4]: the messages have 0 <|image|> placeholders, but 1 images were given" in caplog.messages[0]


def fingerprint(sample: Sample) -> tuple[bytes, ...]:
    return tuple(field.tobytes() for field in sample)


def counting(count: int, prefix: str) -> list[dict]:
    """Records whose answers are a letter of the vocabulary and a number."""
    answers = [f"{prefix}{i:02d}" for i in range(count)]
    messages = [[{"role": "user", "content": "digit"}, {"role": "assistant", "content": answer}] for answer in answers]
    return [{"messages": json.dumps(message), "images": [], "metadata": "{}"} for message in messages]


def mixed(processor: Processor, weights: tuple[float | None, float | None], batches: int, **config: object) -> list[str]:
    """Answers in order, from 30 records of source A and 10 of source B."""
    sources = {
        SourceConfig("a", weight=weights[0]): RecordSource(counting(30, "A"), "a"),
        SourceConfig("b", weight=weights[1], loss_weight=0.5): RecordSource(counting(10, "B"), "b"),
    }
    settings = DataConfig(rows=4, tokens_per_row=23, images_per_row=1, pack=False, prefetch=1, **config)
    iterator = iterate_batches(sources, settings, processor)
    found = []
    for _ in range(batches):
        batch = next(iterator)
        found += numbers_of(processor, batch)
        for row, loss in zip(batch.tokens, batch.loss_weights, strict=True):
            letter = processor.tokenizer.decode(row[loss > 0])[0]
            assert loss.max() == {"A": 1.0, "B": 0.5}[letter]
    iterator.close()
    return found


@pytest.mark.parametrize("weights, share", [((None, None), 0.75), ((1.0, 3.0), 0.25), ((None, 1.0), 0.5)])
def test_sources_are_mixed_by_weight_and_each_has_its_own_epochs(processor, weights, share):
    found = mixed(processor, weights, batches=20)
    assert sum(answer.startswith("A") for answer in found) == pytest.approx(share * 80, abs=2)
    for letter, count in (("A", 30), ("B", 10)):
        own = [answer for answer in found if answer.startswith(letter)]
        times = Counter(own).values()
        assert len(times) == min(count, len(own)) and max(times) - min(times) <= 1


def test_worker_processes_give_the_same_batches(processor):
    assert mixed(processor, (None, None), batches=5, workers=2) == mixed(processor, (None, None), batches=5)


def test_a_worker_process_that_hangs_does_not_keep_the_iterator_from_ending(processor, monkeypatch):
    monkeypatch.setattr(pipeline, "_GRACE", 0.5)
    config = dataclasses.replace(CONFIG, workers=1)
    with Shard(processor, numbered_records(20), config) as shard:
        shard.take(1)
        loaders = multiprocessing.active_children()
        for loader in loaders:
            psutil.Process(loader.pid).suspend()
    assert loaders and not any(loader.is_alive() for loader in loaders)


def read_until_killed(started: multiprocessing.connection.Connection) -> None:
    """A training process with one worker process, of which it tells the number."""
    config = dataclasses.replace(CONFIG, workers=1)
    with Shard(Processor(make_tokenizer(), IMAGE_SIZE), numbered_records(20), config) as shard:
        shard.take(1)
        started.send([child.pid for child in psutil.Process().children(recursive=True)])
        time.sleep(600)


def test_worker_processes_end_with_the_process_that_started_them():
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=read_until_killed, args=(writer,))
    process.start()
    children = [psutil.Process(pid) for pid in reader.recv()]
    process.kill()
    assert children and not psutil.wait_procs(children, timeout=60)[1]


def long_records() -> list[dict]:
    """One that fits a row of 40 tokens, one of three turns that does not, one whose first question does not."""
    turn = lambda question, answer: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    records = [
        turn("digit", "111"),
        [*turn("digit", "2 2 2"), *turn("digit", "3 3 3"), *turn("digit", "4 4 4")],
        turn("digit " * 50, "5"),
        turn("digit", "6 " * 50),
    ]
    return [{"messages": json.dumps(messages), "images": [], "metadata": "{}"} for messages in records]


@pytest.mark.parametrize(
    "too_long, answers",
    [("skip", ["111"]), ("truncate", ["111", "222333", "6" * 25])],
)
def test_samples_that_do_not_fit_are_skipped_or_lose_their_last_turns(processor, too_long, answers):
    config = DataConfig(rows=1, tokens_per_row=40, images_per_row=1, pack=False, prefetch=1, too_long=too_long, max_skipped=1.0)
    with Shard(processor, long_records(), config) as shard:
        batches = shard.take(6)
        assert ("memory", "too-long") in shard.iterator.skips()
    found = {answer for batch in batches for answer in numbers_of(processor, batch)}
    assert found == {*answers[:2], *(answer for answer in found if set(answer) == {"6"} and too_long == "truncate")}
    assert all(len(answer) > 20 for answer in found if set(answer) == {"6"})


def test_crops_are_for_a_share_of_a_source(processor):
    record = stored_records()[0]
    config = DataConfig(tokens_per_row=900, images_per_row=200)
    views = {}
    for crop in (None, 0.0, 0.5, 1.0):
        source = SourceConfig("memory", crop=crop)
        records = RecordSource([record] * 60, "memory")
        views[crop] = [consider(records[i], config, source, processor).size[1] for i in range(60)]
        assert views[crop] == [consider(records[i], config, source, processor).size[1] for i in range(60)]
    few, many = len(record["images"]), views[1.0][0]
    assert set(views[None]) == set(views[0.0]) == {few} and set(views[1.0]) == {many} and many > few
    assert 15 < views[0.5].count(many) < 45


def test_large_jpeg_files_are_decoded_at_a_fraction_of_their_size_where_asked(processor):
    buffer = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).save(buffer, "jpeg")
    messages = [{"role": "user", "content": "<|image|>"}, {"role": "assistant", "content": "digit"}]
    stored = {"messages": json.dumps(messages), "images": [buffer.getvalue()], "metadata": "{}"}
    (record,) = RecordSource([stored], "memory/train")
    whole, draft = (
        consider(record, dataclasses.replace(CONFIG, jpeg_draft=jpeg_draft), SOURCE, processor).read()
        for jpeg_draft in (False, True)
    )
    expected = squash(load_image(buffer.getvalue(), "photograph", draft=(IMAGE_SIZE, IMAGE_SIZE)), IMAGE_SIZE)
    np.testing.assert_array_equal(draft.pixel_values[0], expected)
    assert (draft.pixel_values != whole.pixel_values).any()
