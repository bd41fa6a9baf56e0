"""What training does with a record that cannot be used: skip it, name it, count it, and stop when there are too many."""

import collections
import logging
import threading
from collections.abc import Mapping
from typing import NamedTuple

from owl3_jax.data.readers.records import Kind

_logger = logging.getLogger(__name__)

_FEW = 100  # samples of a source, of which a share would be a matter of chance


class Skipped(NamedTuple):
    """A record that is left out."""

    source: str
    record: str
    kind: Kind
    detail: str


class TooManySkippedError(RuntimeError):
    """A source loses more of its samples than `data.max_skipped` allows; the message says why they were skipped."""


class Skips:
    """How many records of each source were used and skipped since this was made; safe to share between threads.

    It counts what was read, which is up to `data.prefetch` batches ahead of training, and the same record again in every
    epoch. It is not part of the iterator's state: after a resume it starts at zero, `epochs` with what was saved.
    """

    def __init__(self) -> None:
        self.sizes: Mapping[str, float] = {}  # records of each source that this process reads in an epoch
        self._before: Mapping[str, int] = {}
        self._lock = threading.Lock()
        self._used: collections.Counter[str] = collections.Counter()
        self._skipped: collections.Counter[tuple[str, Kind]] = collections.Counter()

    @property
    def count(self) -> int:
        """Records skipped so far."""
        return self._skipped.total()

    def by_reason(self) -> dict[tuple[str, Kind], int]:
        """Records skipped so far, by source and kind of problem."""
        with self._lock:
            return dict(self._skipped)

    def seen(self) -> dict[str, int]:
        """Records read so far, by source, with those of `resume`."""
        with self._lock:
            return {x: self._before.get(x, 0) + self._used[x] + self._skips_of(x) for x in self.sizes}

    def epochs(self) -> dict[str, float]:
        """How often each source was read so far."""
        return {source: count / self.sizes[source] for source, count in self.seen().items()}

    def resume(self, seen: Mapping[str, int]) -> None:
        """Counts on from what `seen` was when the run was saved."""
        self._before = dict(seen)

    def use(self, source: str) -> None:
        """Counts a sample that goes into a batch."""
        with self._lock:
            self._used[source] += 1

    def skip(self, skipped: Skipped, largest_share: float) -> None:
        """Counts one record and logs its name with the cause.

        Raises TooManySkippedError when more than `largest_share` of its source were skipped (of 100 samples at least), and when
        a whole epoch of every source was.
        """
        with self._lock:
            self._skipped[skipped.source, skipped.kind] += 1
            reasons = {kind: count for (source, kind), count in self._skipped.items() if source == skipped.source}
            seen = self._used[skipped.source] + sum(reasons.values())
            useless = bool(self.sizes) and not self._used and all(self._skips_of(x) >= self.sizes[x] for x in self.sizes)
        _logger.warning("skipped %s: %s", skipped.record, skipped.detail)
        if useless:
            raise TooManySkippedError(
                f"all samples of {', '.join(self.sizes)} were skipped, so there is nothing to train on; the last was "
                f"{skipped.record}: {skipped.detail}"
            )
        if sum(reasons.values()) > largest_share * max(seen, _FEW):
            counted = ", ".join(f"{kind} {count}" for kind, count in sorted(reasons.items()))
            raise TooManySkippedError(
                f"{sum(reasons.values())} of the first {seen} samples of {skipped.source} were skipped ({counted}), more than "
                f"data.max_skipped {largest_share:g}; the last was {skipped.record}: {skipped.detail}"
            )

    def _skips_of(self, source: str) -> int:
        return sum(count for (of, _), count in self._skipped.items() if of == source)
