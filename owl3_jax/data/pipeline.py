"""From records to training batches: shuffle, mix, process, pack in lanes, prefetch (grain).

The batches are a function of the config: neither the number of hosts and worker processes nor restarts change them.
"""

import functools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int32

from owl3_jax.batch import Batch
from owl3_jax.config import DataConfig, SourceConfig
from owl3_jax.data.lanes import Lanes, LaneState, Order, Row, ahead_of
from owl3_jax.data.readers.records import Kind, Records
from owl3_jax.data.samples import Guarded, consider, for_source
from owl3_jax.data.skipped import Counts, Skipped, check_share
from owl3_jax.data.sources import open_source
from owl3_jax.host.lifeline import time_limit
from owl3_jax.host.workers import end_with_parent, kill_children
from owl3_jax.processing.processor import Processor

_logger = logging.getLogger(__name__)

# With its filter, grain appends a note about itself to the message of every error that passes through it.
grain.config.update("py_traceback_filtering", "off")

_GRACE = 20.0  # seconds for worker processes to end, before they are killed
_BUFFERED = 2  # rows of each worker process that wait for the others'

_HINT = "a disk, a bucket or a worker process hangs. The same command resumes the run from its last checkpoint"

States = Int32[np.ndarray, "lanes S"]


class JoinedRows(NamedTuple):
    """One row of each of several lanes, as a batch."""

    batch: Batch
    states: States  # of the lanes, after it
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "JoinedRows":
        """The batch of these rows, in their order."""
        batch: Batch = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(row.batch for row in rows))
        states = np.stack([np.asarray(row.state) for row in rows])
        return cls(batch, states, tuple(each for row in rows for each in row.skipped))


class TrainIterator(Iterator[Batch]):
    """An endless iterator over numpy `Batch`es of some of the rows.

    It ends the process when a batch, or the end of what loads them, takes longer than `data.timeout` seconds: others would
    wait for ever.
    It raises ConfigError for a sample that does not fit a row if `data.too_long` is "raise", and TooManySkippedError.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator[JoinedRows] | Generator[JoinedRows, None, None],
        states: States,
        sizes: Mapping[str, float],
        config: DataConfig,
    ) -> None:
        self.states = states  # of the lanes, after the last batch
        self.sizes = sizes  # records of each source that these rows have in an epoch
        self._batches, self._max_skipped, self._timeout = batches, config.max_skipped, config.timeout

    def __next__(self) -> Batch:
        with self._time_limit("no batch of data has come"):
            joined = next(self._batches)
        self.states = joined.states
        if joined.skipped:
            counts, sources = self.counts, list(self.sizes)
            for each in joined.skipped:
                _logger.warning("skipped %s: %s", each.record, each.detail)
                check_share(counts, sources, self._max_skipped, each)
        return joined.batch

    def close(self) -> None:
        """Stops its thread and processes. Those that hang are killed, so that a run ends as it would without them."""
        with (
            time_limit(_GRACE, "", on_timeout=lambda _: kill_children()),
            self._time_limit("what loads data has not ended"),
        ):
            self._batches.close()
        self._batches = iter(())

    def _time_limit(self, problem: str) -> AbstractContextManager[None]:
        return time_limit(self._timeout, f"{problem} within {self._timeout:g} s (data.timeout): {_HINT}")

    @property
    def counts(self) -> Counts:
        """The samples of these rows that were used and skipped since the run began."""
        sources = len(self.sizes)
        return Counts.total((LaneState.from_array(state, sources).counts for state in self.states), sources)

    def skips(self) -> dict[tuple[str, Kind], int]:
        """Samples skipped since the run began, by source and kind of problem."""
        counts = self.counts
        return {
            (source, kind): count for number, source in enumerate(self.sizes) for kind, count in counts.reasons(number).items()
        }

    def epochs(self) -> dict[str, float]:
        """How often each source was read since the run began."""
        counts = self.counts
        return {source: counts.seen(number) / size for number, (source, size) in enumerate(self.sizes.items())}


def make_train_iterator(
    config: DataConfig, processor: Processor, lanes: Sequence[int] | None = None, states: States | None = None
) -> TrainIterator:
    """The iterator over the training batches, or over some of their rows.

    Args:
        config: `rows` counts the rows of all hosts.
        processor: makes samples from records.
        lanes: the rows, by their numbers in a batch (`owl3_jax.sharding.own_rows`); by default all.
        states: where these begin (`TrainIterator.states`); by default at the beginning.

    Raises:
        ConfigError: a source cannot be read.
        FileNotFoundError: a data set is not prepared.
    """
    records = {source: open_source(source, config) for source in config.sources}
    return iterate_batches(records, config, processor, lanes, states)


def iterate_batches(
    records: Mapping[SourceConfig, Records],
    config: DataConfig,
    processor: Processor,
    lanes: Sequence[int] | None = None,
    states: States | None = None,
) -> TrainIterator:
    """`make_train_iterator` over given records."""
    lanes = range(config.rows) if lanes is None else lanes
    if states is None:
        states = np.stack([LaneState.fresh(len(records)).to_array(ahead_of(config))] * len(lanes))
    order = sample_order(
        {source: Guarded(source.label, given) for source, given in records.items()},
        config,
        lambda source: functools.partial(consider, config=config, source=source, processor=for_source(processor, source)),
    )
    sizes = {source.label: len(given) for source, given in records.items()}
    rows: grain.IterDataset[Row] = Lanes(order, config, processor.image_size, sizes, lanes, states)
    if workers := _workers(config, len(lanes)):
        if not flags.FLAGS.is_parsed():  # grain's processes read flags of absl, which nobody else here does
            flags.FLAGS(["owl3"])
        # Small arrays are pickled: a segment of shared memory for each would take longer than a row's pixels.
        rows = grain.experimental.WithOptionsIterDataset(rows, grain.experimental.DatasetOptions(min_shm_size=2**15))
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BUFFERED)
        rows = rows.mp_prefetch(options, worker_init_fn=_begin_worker)
    # In the thread, so that the training loop does not wait for Python's lock at every row.
    batches = rows.batch(len(lanes), batch_fn=JoinedRows.of)
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch)
    own = {source: size * len(lanes) / config.rows for source, size in sizes.items()}
    return TrainIterator(iter(ahead), states, own, config)


def sample_order(
    records: Mapping[SourceConfig, Sized], config: DataConfig, consider: Callable[[SourceConfig], Callable[..., object]]
) -> Order:
    """The order of all samples of all sources: each shuffled anew in every epoch, mixed by weight.

    `consider` gives for a source the function of a record that makes its sample.
    """
    parts = [
        grain.MapDataset.source(given).seed(config.seed + number).shuffle().repeat().map(consider(source))
        for number, (source, given) in enumerate(records.items())
    ]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=mixture_weights(records))
    return Order(mixed, config.rows, config.seed)


def _begin_worker(number: int, workers: int) -> None:
    end_with_parent()


def _workers(config: DataConfig, lanes: int) -> int:
    """Worker processes: the most that `data.workers` allows and that have equally many lanes."""
    return max((count for count in range(1, min(config.workers, lanes) + 1) if lanes % count == 0), default=0)


def mixture_weights(records: Mapping[SourceConfig, Sized]) -> list[float]:
    """The share of each source, relative to the others': its own weight; where none has one, its number of records."""
    if all(source.weight is None for source in records):
        return [float(len(given)) for given in records.values()]
    return [1.0 if source.weight is None else source.weight for source in records]
