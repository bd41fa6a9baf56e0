"""Few batch shapes for many prompt sizes: each shape is compiled once, which costs more than some padding."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

TOKEN_STEP = 32  # prompt lengths are rounded up to a multiple of this before shapes are chosen


class PromptSize(NamedTuple):
    """What one row has to hold."""

    tokens: int
    images: int

    def fits(self, other: "PromptSize") -> bool:
        """Whether a prompt of size `other` goes into a row of this size."""
        return other.tokens <= self.tokens and other.images <= self.images

    def union(self, other: "PromptSize") -> "PromptSize":
        """The smallest size that both go into."""
        return PromptSize(max(self.tokens, other.tokens), max(self.images, other.images))


def round_up(size: PromptSize) -> PromptSize:
    """`size` with its tokens rounded up to a multiple of TOKEN_STEP, so that equal kinds of prompts share a size."""
    return PromptSize(-(-size.tokens // TOKEN_STEP) * TOKEN_STEP, size.images)


def choose_row_sizes(sizes: Sequence[PromptSize], limit: int, tokens_per_image: int) -> list[PromptSize]:
    """At most `limit` row sizes such that every prompt fits one, with little padding.

    Greedy: starts from all sizes there are, then merges, again and again, the two whose union adds the least padded
    positions (text tokens plus image tokens, over all prompts).
    """
    if limit < 1:
        raise ValueError(f"at least one row size is needed, got a limit of {limit}")
    counts: Mapping[PromptSize, int] = Counter(round_up(size) for size in sizes)
    groups = dict(counts)

    def added_positions(pair: tuple[PromptSize, PromptSize]) -> int:
        union = pair[0].union(pair[1])
        return sum(groups[size] * (_positions(union, tokens_per_image) - _positions(size, tokens_per_image)) for size in pair)

    while len(groups) > limit:
        pair = min(itertools.combinations(sorted(groups), 2), key=added_positions)
        merged = sum(groups.pop(size) for size in pair)
        union = pair[0].union(pair[1])
        groups[union] = groups.get(union, 0) + merged
    return sorted(groups)


def _positions(size: PromptSize, tokens_per_image: int) -> int:
    return size.tokens + size.images * tokens_per_image


def smallest_fit(size: PromptSize, row_sizes: Sequence[PromptSize], tokens_per_image: int) -> PromptSize:
    """The cheapest of `row_sizes` that holds `size`. Raises ValueError if none does."""
    fitting = [row for row in row_sizes if row.fits(size)]
    if not fitting:
        raise ValueError(f"a prompt of {size.tokens} tokens and {size.images} images fits none of the rows {list(row_sizes)}")
    return min(fitting, key=lambda row: _positions(row, tokens_per_image))
