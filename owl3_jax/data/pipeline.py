"""From records to training batches: shuffle, shard, process, pack, prefetch (grain).

The iterator's state is the index of the next record. Everything else follows from it and the seed, so `set_state` resumes
with exactly the batches that would have come, in the middle of an epoch too.
"""

import functools

import grain

from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.packing import pack_samples
from owl3_jax.data.readers.records import Record, Records
from owl3_jax.data.sources import open_records
from owl3_jax.data.unreadable import UnreadableImages
from owl3_jax.processing.batch import check_fits
from owl3_jax.processing.images import UnreadableImage, load_image
from owl3_jax.processing.processor import Processor, Sample

# A mostly unreadable data set is an error, not something to skip through; grain checks every 1000 records.
MOST_SKIPPED = 0.5


def make_train_iterator(
    config: DataConfig,
    processor: Processor,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    unreadable: UnreadableImages | None = None,
) -> grain.DatasetIterator:
    """An endless iterator over this host's part of the training batches.

    Args:
        config: `rows` counts the rows of all hosts.
        processor: makes samples from records.
        shard_index: which part of the rows this host makes (`owl3_jax.sharding.own_rows`).
        shard_count: number of parts; for each, its own part of every epoch is read and rows / shard_count rows are made.
        unreadable: counts the records that were skipped because of an unreadable image.

    Returns:
        Iterator over numpy `Batch`es, with `get_state` and `set_state`; `close` stops its thread.

    Raises:
        ConfigError: the rows can't be divided among the hosts.
        FileNotFoundError: the data set is not prepared.
    """
    records = open_records(config, "train")
    return iterate_batches(records, config, processor, shard_index, shard_count, unreadable or UnreadableImages())


def iterate_batches(
    records: Records,
    config: DataConfig,
    processor: Processor,
    shard_index: int,
    shard_count: int,
    unreadable: UnreadableImages,
) -> grain.DatasetIterator:
    """`make_train_iterator` over given records."""
    rows = _rows_per_shard(config, shard_count)
    samples = (
        grain.MapDataset.source(records)
        .seed(config.seed)
        .shuffle()[shard_index::shard_count]
        .repeat()
        .map(functools.partial(_process, config=config, processor=processor, unreadable=unreadable))
        # One thread does all (below): the work is short Python calls, which more threads would only interrupt.
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    batches = pack_samples(samples, config, rows)
    options = grain.experimental.DatasetOptions(filter_raise_threshold_ratio=MOST_SKIPPED)
    batches = grain.experimental.WithOptionsIterDataset(batches, options)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))


def process_record(record: Record, processor: Processor, *, training: bool) -> Sample:
    """Decodes a record's images and processes it.

    Raises UnreadableImage naming the image, or ValueError naming the record when its conversation is malformed.
    """
    images = [load_image(encoded, f"{index} of {record.name}") for index, encoded in enumerate(record.images)]
    try:
        return processor(record.messages, images, training=training)
    except ValueError as error:
        raise ValueError(f"{record.name}: {error}") from error


def _rows_per_shard(config: DataConfig, shard_count: int) -> int:
    if config.rows % shard_count:
        raise ConfigError(f"data.rows {config.rows} must be a multiple of the number of hosts, {shard_count}")
    return config.rows // shard_count


def _process(record: Record, config: DataConfig, processor: Processor, unreadable: UnreadableImages) -> Sample | None:
    """A record's sample; None, which grain skips, when an image is unreadable."""
    try:
        sample = process_record(record, processor, training=True)
    except UnreadableImage as error:
        unreadable.skip(record.name, error)
        return None
    check_fits(sample, config.tokens_per_row, config.images_per_row, name=record.name)
    return sample
