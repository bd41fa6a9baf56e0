"""From records to training batches: shuffle, shard, mix, process, pack, prefetch (grain).

The iterator's state is the index of the next record. Everything else follows from it and the seed, so `set_state` resumes
with exactly the batches that would have come, in the middle of an epoch too.
"""

import functools
from collections.abc import Mapping, Sized

import grain
from absl import flags

from owl3_jax.config import ConfigError, DataConfig, SourceConfig
from owl3_jax.data.packing import pack_samples
from owl3_jax.data.readers.records import Records
from owl3_jax.data.samples import Group, Guarded, Loaded, for_source, join, load, split
from owl3_jax.data.skipped import Skipped, Skips
from owl3_jax.data.sources import open_source
from owl3_jax.processing.processor import Processor

# With its filter, grain appends a note about itself to the message of every error that passes through it.
grain.config.update("py_traceback_filtering", "off")

_GROUP = 8  # samples that a worker process sends at a time
_BUFFERED = 2  # groups of each worker process that wait to be packed


def make_train_iterator(
    config: DataConfig,
    processor: Processor,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    skips: Skips | None = None,
) -> grain.DatasetIterator:
    """An endless iterator over this host's part of the training batches.

    Args:
        config: `rows` counts the rows of all hosts.
        processor: makes samples from records.
        shard_index: which part of the rows this host makes (`owl3_jax.sharding.own_rows`).
        shard_count: number of parts; for each, its own part of every epoch is read and rows / shard_count rows are made.
        skips: counts the records that are used, and those that are skipped, by source.

    Returns:
        Iterator over numpy `Batch`es, with `get_state` and `set_state`; `close` stops its thread and processes. It raises
        ConfigError for a sample that does not fit a row if `data.too_long` is "raise", and TooManySkippedError.

    Raises:
        ConfigError: a source cannot be read, or the rows can't be divided among the hosts.
        FileNotFoundError: a data set is not prepared.
    """
    records = {source: open_source(source, config) for source in config.sources}
    return iterate_batches(records, config, processor, shard_index, shard_count, skips or Skips())


def iterate_batches(
    records: Mapping[SourceConfig, Records],
    config: DataConfig,
    processor: Processor,
    shard_index: int,
    shard_count: int,
    skips: Skips,
) -> grain.DatasetIterator:
    """`make_train_iterator` over given records."""
    rows = _rows_per_shard(config, shard_count)
    skips.sizes = {source.label: len(given) / shard_count for source, given in records.items()}
    parts = [
        grain.MapDataset.source(Guarded(source.label, given))
        .seed(config.seed + number)
        .shuffle()[shard_index::shard_count]
        .repeat()
        .map(functools.partial(load, config=config, source=source, processor=for_source(processor, source)))
        for number, (source, given) in enumerate(records.items())
    ]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=mixture_weights(records))
    # Without workers one thread does all (below): the work is short Python calls, which more threads would only interrupt.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # grain's processes read flags of absl, which nobody else here does
            flags.FLAGS(["owl3"])
        options = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=_BUFFERED)
        # Small arrays are pickled: a segment of shared memory for each would take longer than the image's.
        shared = grain.experimental.DatasetOptions(min_shm_size=2**15)
        groups = mixed.batch(_GROUP, batch_fn=join).to_iter_dataset(reading)
        groups = grain.experimental.WithOptionsIterDataset(groups, shared).mp_prefetch(options)
        samples = grain.experimental.FlatMapIterDataset(groups, _Ungroup())
    else:
        samples = mixed.to_iter_dataset(reading)
    kept = samples.filter(functools.partial(_keep, config=config, skips=skips))
    batches = pack_samples(kept, config, rows)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))


class _Ungroup(grain.experimental.FlatMapTransform):
    """The samples of a group, one by one."""

    max_fan_out = _GROUP

    def flat_map(self, group: Group) -> list[Loaded | Skipped]:
        return split(group)


def mixture_weights(records: Mapping[SourceConfig, Sized]) -> list[float]:
    """The share of each source, relative to the others': its own weight; where none has one, its number of records."""
    if all(source.weight is None for source in records):
        return [float(len(given)) for given in records.values()]
    return [1.0 if source.weight is None else source.weight for source in records]


def _rows_per_shard(config: DataConfig, shard_count: int) -> int:
    if config.rows % shard_count:
        raise ConfigError(f"data.rows {config.rows} must be a multiple of the number of hosts, {shard_count}")
    return config.rows // shard_count


def _keep(item: Loaded | Skipped, config: DataConfig, skips: Skips) -> bool:
    """Whether this is a sample; counts it. It runs in the training process, whichever process has made the sample."""
    if isinstance(item, Loaded):
        skips.use(item.source)
        return True
    if item.kind in ("too-long", "too-many-images") and config.too_long == "raise":
        raise ConfigError(
            f"{item.record}: {item.detail}. Raise that, or set data.too_long to skip, or to truncate, which drops last turns"
        )
    skips.skip(item, config.max_skipped)
    return False
