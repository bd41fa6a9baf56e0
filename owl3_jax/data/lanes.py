"""Rows of training batches, each packed by a lane of its own.

Row r of every batch is packed by lane r, from its own part of the one order of all samples. A lane knows nothing of other
lanes, hosts or processes, so the batches are a function of the config alone: whoever packs a lane, and wherever it goes on,
makes the same rows. What it has to remember is small (`LaneState`), and travels with each row.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int, Int32

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.samples import Candidate, kind_of
from owl3_jax.data.skipped import FEW, KINDS, Counts, Skipped, check_share, check_usable
from owl3_jax.data.sources import require_present
from owl3_jax.processing.batch import pack_batch
from owl3_jax.processing.processor import Sample


@dataclasses.dataclass
class LaneState:
    """How far a lane has come."""

    next: int  # of its samples, the one that it has not looked at yet
    pending: list[int]  # those that it has looked at, and not used, in their order
    counts: Counts  # of its samples so far

    @classmethod
    def fresh(cls, sources: int) -> "LaneState":
        """At the beginning."""
        return cls(0, [], Counts.zeros(sources))

    def to_array(self, ahead: int) -> Int32[np.ndarray, " S"]:
        """As numbers, of which there are as many in every state of a run (S); `ahead` is `data.pack_ahead`."""
        pending = np.full(ahead, -1, np.int32)
        pending[: len(self.pending)] = self.pending
        return np.concatenate([[np.int32(self.next)], pending, self.counts.array.ravel()]).astype(np.int32)

    @classmethod
    def from_array(cls, array: Int32[np.ndarray, " S"], sources: int) -> "LaneState":
        """What `to_array` has written."""
        numbers = np.asarray(array)
        counts = numbers[len(numbers) - sources * (1 + len(KINDS)) :].reshape(sources, -1)
        pending = numbers[1 : len(numbers) - counts.size]
        return cls(int(numbers[0]), pending[pending >= 0].tolist(), Counts(counts.copy()))


def state_size(config: DataConfig) -> int:
    """S, the numbers of a lane's state."""
    return 1 + ahead_of(config) + len(config.sources) * (1 + len(KINDS))


def ahead_of(config: DataConfig) -> int:
    """Samples among which a lane chooses the next one of its row."""
    return config.pack_ahead if config.pack else 1


class Row(NamedTuple):
    """One row of a batch, and how far its lane is after it."""

    batch: Batch  # B = 1
    state: Int32[np.ndarray, " S"]
    skipped: tuple[Skipped, ...]  # since the row before


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of all samples, of which each lane has its part."""

    samples: grain.MapDataset  # of `Candidate | Skipped`, without an end
    lanes: int  # of all hosts
    seed: int

    def place(self, lane: int, number: int) -> int:
        """Where in the order a lane's samples are.

        Of each block of as many samples as there are lanes, every lane has one. Which one changes from block to block: sources
        that take turns would otherwise be in some lanes only, and long samples count less than short ones.
        """
        turn = int.from_bytes(hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest(), "little")
        return number * self.lanes + (lane + turn) % self.lanes

    def __call__(self, lane: int, number: int) -> Candidate | Skipped:
        """A lane's sample, not decoded."""
        found: Candidate | Skipped = self.samples[self.place(lane, number)]
        return found


class Lane:
    """Packs the rows of one lane."""

    def __init__(
        self, order: Order, config: DataConfig, image_size: int, sizes: Mapping[str, int], lane: int, state: LaneState
    ) -> None:
        """`sizes` are the records of each source."""
        self._order, self._config, self._image_size, self._lane = order, config, image_size, lane
        self._sources = list(sizes)
        self._sizes = [size / order.lanes for size in sizes.values()]
        self._state = state
        self._pending: list[tuple[int, Candidate]] = []  # as many as `state.pending`
        for number in state.pending:
            candidate = order(lane, number)
            if isinstance(candidate, Skipped):
                raise ConfigError(f"{candidate.record} was readable when this run was saved: {candidate.detail}")
            self._pending.append((number, candidate))

    def next_row(self) -> Row:
        """The next row. Raises ConfigError for a sample that does not fit it, TooManySkippedError, and StorageError."""
        config, skipped = self._config, list[Skipped]()
        chosen: list[tuple[Candidate, Sample]] = []
        tokens, images = config.tokens_per_row, config.images_per_row
        while True:
            self._look_ahead(skipped)
            place = choose([each.size for _, each in self._pending], (tokens, images), is_empty=not chosen)
            if place is None:
                break
            _, candidate = self._pending.pop(place)
            try:
                sample = self._read(candidate)
            except ValueError as error:
                self._skip(Skipped(candidate.source, candidate.record, kind_of(error), str(error)), skipped)
                continue
            self._state.counts.use(self._sources.index(candidate.source))
            chosen.append((candidate, sample))
            tokens, images = tokens - candidate.size[0], images - candidate.size[1]
            if not config.pack:
                break
        self._state.pending = [number for number, _ in self._pending]
        return Row(self._to_batch(chosen), self._state.to_array(ahead_of(config)), tuple(skipped))

    def _read(self, candidate: Candidate) -> Sample:
        """The sample, decoded. Raises ValueError where it is damaged, and StorageError where its source is gone."""
        try:
            return candidate.read()
        except ValueError as error:
            if kind_of(error) != "missing-file":
                raise
            # A file may be missing; but not because a disk or a bucket is, whose samples would be lost to this run.
            require_present(next(each for each in self._config.sources if each.label == candidate.source))
            return candidate.read()

    def _look_ahead(self, skipped: list[Skipped]) -> None:
        while len(self._pending) < ahead_of(self._config):
            number = self._state.next
            candidate = self._order(self._lane, number)
            self._state.next += 1
            if isinstance(candidate, Skipped):
                self._skip(candidate, skipped)
            else:
                self._pending.append((number, candidate))

    def _skip(self, sample: Skipped, skipped: list[Skipped]) -> None:
        if sample.kind in ("too-long", "too-many-images") and self._config.too_long == "raise":
            raise ConfigError(
                f"{sample.record}: {sample.detail}. Raise that, or set data.too_long to skip, or to truncate, which drops last "
                "turns"
            )
        skipped.append(sample)
        self._state.counts.skip(self._sources.index(sample.source), sample.kind)
        check_usable(self._state.counts, self._sources, self._sizes, sample)
        if len(skipped) > FEW:  # a row that has no end; otherwise who reads the rows knows more
            check_share(self._state.counts, self._sources, self._config.max_skipped, sample)

    def _to_batch(self, chosen: Sequence[tuple[Candidate, Sample]]) -> Batch:
        config = self._config
        batch = pack_batch(
            [[sample for _, sample in chosen]],
            tokens_per_row=config.tokens_per_row,
            images_per_row=config.images_per_row,
            image_size=self._image_size,
        )
        of_segment = lambda values, dtype: np.array([0, *values], dtype)[batch.segment_ids]
        weights = batch.loss_weights * of_segment([candidate.loss_weight for candidate, _ in chosen], np.float32)
        ids = of_segment([self._sources.index(each.source) for each, _ in chosen], np.int32) if len(self._sources) > 1 else None
        return batch._replace(loss_weights=weights, source_ids=ids)


def choose(sizes: Sequence[tuple[int, int]], room: tuple[int, int], *, is_empty: bool) -> int | None:
    """Which of several samples, given by tokens and images, goes into the room that a row has left; None if none fits.

    Into an empty row goes the first, which has waited longest; then always the one that fills most, of tokens or of images.
    """
    if is_empty:
        return 0
    tokens, images = room
    fill = lambda place: max(sizes[place][0] / max(tokens, 1), sizes[place][1] / max(images, 1))
    fits = [place for place, size in enumerate(sizes) if size[0] <= tokens and size[1] <= images]
    return max(fits, key=fill) if fits else None  # of equal ones the first


class Lanes(grain.IterDataset[Row]):
    """The next row of each of several lanes in turn, without an end. Worker processes take lanes, not samples, from it."""

    def __init__(
        self,
        order: Order,
        config: DataConfig,
        image_size: int,
        sizes: Mapping[str, int],
        lanes: Sequence[int],
        states: Int[np.ndarray, "lanes S"],
    ) -> None:
        """`states` are where the lanes begin."""
        super().__init__()
        self._make = functools.partial(Lane, order, config, image_size, sizes)
        self._sources, self._lanes, self._states = len(sizes), list(lanes), states

    def set_slice(self, part: slice, sequential_slice: bool = False) -> None:
        """Which of the lanes to take: grain asks each worker process for its own."""
        self._lanes, self._states = self._lanes[part], self._states[part]

    def __iter__(self) -> grain.DatasetIterator[Row]:
        """Begins at the states that were given."""
        lanes = [
            self._make(lane, LaneState.from_array(state, self._sources))
            for lane, state in zip(self._lanes, self._states, strict=True)
        ]
        return _Rows(lanes)


class _Rows(grain.DatasetIterator[Row]):
    def __init__(self, lanes: Sequence[Lane]) -> None:
        super().__init__()
        self._lanes, self._turn = lanes, 0

    def __next__(self) -> Row:
        row = self._lanes[self._turn].next_row()
        self._turn = (self._turn + 1) % len(self._lanes)
        return row

    def get_state(self) -> dict[str, Any]:  # Any: grain's
        """Nothing: the state of a lane comes with its rows."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:  # Any: grain's
        """Nothing: see `get_state`."""
