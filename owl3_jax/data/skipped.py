"""What training does with a record that cannot be used: skip it, name it, count it, and stop when there are too many."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Int32

from owl3_jax.data.readers.records import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
FEW = 100  # samples of a source, of which a share would be a matter of chance


class Skipped(NamedTuple):
    """A record that is left out."""

    source: str
    record: str
    kind: Kind
    detail: str


class TooManySkippedError(RuntimeError):
    """A source loses more of its samples than `data.max_skipped` allows; the message says why they were skipped."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Samples that were used, and skipped, since the run began; a record counts again in every epoch."""

    array: Int32[np.ndarray, "Q kinds"]  # of each source: used, then skipped by kind

    @classmethod
    def zeros(cls, sources: int) -> "Counts":
        """Of Q `sources`."""
        return cls(np.zeros((sources, 1 + len(KINDS)), np.int32))

    @classmethod
    def total(cls, counts: Iterable["Counts"], sources: int) -> "Counts":
        """All of several together."""
        return cls(sum((each.array for each in counts), np.zeros((sources, 1 + len(KINDS)), np.int32)))

    @property
    def skipped(self) -> int:
        """Of all sources."""
        return int(self.array[:, 1:].sum())

    def use(self, source: int) -> None:
        """Counts a sample that goes into a batch."""
        self.array[source, 0] += 1

    def skip(self, source: int, kind: Kind) -> None:
        """Counts one that does not."""
        self.array[source, 1 + KINDS.index(kind)] += 1

    def seen(self, source: int) -> int:
        """Both."""
        return int(self.array[source].sum())

    def reasons(self, source: int) -> dict[Kind, int]:
        """Of a source, the skipped ones by kind."""
        return {kind: int(count) for kind, count in zip(KINDS, self.array[source, 1:], strict=True) if count}


def check_share(counts: Counts, sources: Sequence[str], largest: float, last: Skipped) -> None:
    """Raises TooManySkippedError when more than a share `largest` of a source were skipped (of 100 samples at least).

    Args:
        counts: of Q sources.
        sources: their names.
        largest: `data.max_skipped`.
        last: the sample that was skipped last.
    """
    number = list(sources).index(last.source)
    reasons, seen = counts.reasons(number), counts.seen(number)
    if sum(reasons.values()) > largest * max(seen, FEW):
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(reasons.items()))
        raise TooManySkippedError(
            f"{sum(reasons.values())} of the first {seen} samples of {last.source} were skipped ({counted}), more than "
            f"data.max_skipped {largest:g}; the last was {last.record}: {last.detail}"
        )


def check_usable(counts: Counts, sources: Sequence[str], sizes: Sequence[float], last: Skipped) -> None:
    """Raises TooManySkippedError when a whole epoch of every source was skipped; `sizes` are the samples of one."""
    if not counts.array[:, 0].any() and all(counts.seen(source) >= size for source, size in enumerate(sizes)):
        raise TooManySkippedError(
            f"all samples of {', '.join(sources)} were skipped, so there is nothing to train on; the last was "
            f"{last.record}: {last.detail}"
        )
