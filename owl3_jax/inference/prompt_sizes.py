"""Few batch sizes for many prompt sizes: each is compiled once, which costs more than some padding."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TOKEN_STEP = 32  # prompt lengths are rounded up to a multiple of this before batch sizes are chosen


class PromptSize(NamedTuple):
    """What one row has to hold."""

    tokens: int
    images: int

    def fits(self, other: "PromptSize") -> bool:
        """Whether a prompt of size `other` fits into a row of this size."""
        return other.tokens <= self.tokens and other.images <= self.images

    def union(self, other: "PromptSize") -> "PromptSize":
        """The smallest size that both fit into."""
        return PromptSize(max(self.tokens, other.tokens), max(self.images, other.images))

    def positions(self, tokens_per_image: int) -> int:
        """Positions of a row of this size: the measure of its cost."""
        return self.tokens + self.images * tokens_per_image


class BatchSize(NamedTuple):
    """What a batch is padded to: `rows` rows, each for a prompt of at most `row`."""

    rows: int
    row: PromptSize


def choose_batch_sizes(
    sizes: Iterable[PromptSize],
    *,
    shapes: int,
    images_per_batch: int,
    tokens_per_image: int,
    rows_divisor: int = 1,
    rows_per_batch: int | None = None,
) -> list[BatchSize]:
    """At most `shapes` batch sizes, one of which every prompt fits into; the cheapest first.

    Args:
        sizes: of all prompts.
        shapes: the most batch sizes.
        images_per_batch: bounds the images and the rows of a batch, unless `rows_divisor` rows have more images already.
        tokens_per_image: positions that an image costs, compared with one of text.
        rows_divisor: the rows of each batch are a multiple of this.
        rows_per_batch: bounds the rows, too.

    Raises ValueError when `shapes` is less than one.
    """
    counts = Counter(map(_round_up, sizes))
    rows = sorted(_choose_rows(counts, shapes, tokens_per_image), key=lambda row: row.positions(tokens_per_image))
    prompts: Counter[PromptSize] = Counter()
    for size, count in counts.items():
        prompts[next(row for row in rows if row.fits(size))] += count

    def height(row: PromptSize) -> int:
        allowed = min(images_per_batch // max(row.images, 1), rows_per_batch or images_per_batch) // rows_divisor
        needed = -(-prompts[row] // rows_divisor)
        return max(min(allowed, needed), 1) * rows_divisor

    return [BatchSize(height(row), row) for row in rows if row in prompts]


def smallest_fit(size: PromptSize, batches: Sequence[BatchSize]) -> BatchSize:
    """The first of the `batches`, cheapest first, whose rows hold `size`. Raises ValueError if there is none."""
    for batch in batches:
        if batch.row.fits(size):
            return batch
    rows = [tuple(batch.row) for batch in batches]
    raise ValueError(f"a prompt of {size.tokens} tokens and {size.images} images fits none of the rows {rows}")


def _round_up(size: PromptSize) -> PromptSize:
    """`size` with its tokens rounded up, so that prompts of one kind share a size."""
    return PromptSize(-(-size.tokens // _TOKEN_STEP) * _TOKEN_STEP, size.images)


def _choose_rows(counts: Counter[PromptSize], limit: int, tokens_per_image: int) -> list[PromptSize]:
    """At most `limit` row sizes for prompts of the sizes that `counts` counts.

    Greedy: starts from all distinct sizes, then repeatedly merges the two whose union adds the fewest padded
    positions, over all prompts.
    """
    if limit < 1:
        raise ValueError(f"at least one batch size is needed, got a limit of {limit}")
    groups = dict(counts)

    def added_positions(pair: tuple[PromptSize, PromptSize]) -> int:
        union = pair[0].union(pair[1]).positions(tokens_per_image)
        return sum(groups[size] * (union - size.positions(tokens_per_image)) for size in pair)

    while len(groups) > limit:
        pair = min(itertools.combinations(sorted(groups), 2), key=added_positions)
        merged = sum(groups.pop(size) for size in pair)
        union = pair[0].union(pair[1])
        groups[union] = groups.get(union, 0) + merged
    return list(groups)
