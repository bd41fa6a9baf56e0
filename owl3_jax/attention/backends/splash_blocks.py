"""What splash's kernels need to know about rows of text: how they are cut into blocks, and which pairs of blocks matter.

A row's `Visibility.limits` are what splash calls `q_sequence`; its segments are splash's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Int

from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.padding import pad_to_multiple

SMALLEST_BLOCK = 128
# The most that fits into the 16 MiB that v4 has for kernels, at head size 128, is 1024 x 1024 in float32.
_QUERIES = (512, 384, 256, SMALLEST_BLOCK)
_KEYS = (1024, 768, 512, 384, 256, SMALLEST_BLOCK)
_KEYS_AT_ONCE = 512


class Sizes(NamedTuple):
    """Positions and keys of a block."""

    queries: int
    keys: int

    @property
    def keys_at_once(self) -> int:
        """Keys whose scores exist at the same time."""
        return self.keys if self.keys <= _KEYS_AT_ONCE else self.keys // 2


class Blocks(NamedTuple):
    """Rows, each padded to whole blocks, one after the other. Without a mask they are heads, and all of them one row here."""

    size: Sizes
    limits: Int[Array, " nT"]
    segment_ids: SegmentIds | None  # of all rows: no two rows share one
    needed: Bool[Array, "n blocks_of_queries blocks_of_keys"] | None  # None: all

    @staticmethod
    def sizes(T: int, C: int) -> Sizes:
        """Those of the blocks of T positions and C keys."""
        return Sizes(_block(T, _QUERIES), _block(C, _KEYS))

    @classmethod
    def of(cls, T: int, C: int, visible: Visibility | None, real_tokens: int | None = None) -> "Blocks":
        """The blocks of n rows of T positions and C keys.

        `visible` has the n rows in place of B. None: the first `real_tokens` are seen, or all.
        """
        size = cls.sizes(T, C)
        if visible is None:
            return cls(size, pad_to_multiple(jnp.full(T, real_tokens or C, jnp.int32), 0, size.queries), None, None)
        limits, segment_ids = (pad_to_multiple(x, 1, size.queries) for x in (visible.limits, visible.segment_ids))
        key_segment_ids = pad_to_multiple(visible.key_segment_ids, 1, size.keys)
        rows = jnp.arange(len(limits), dtype=jnp.int32)[:, None]
        own = lambda segment_ids: (segment_ids * len(limits) + rows).reshape(-1)
        return cls(
            size,
            jnp.where(limits > 0, limits + rows * key_segment_ids.shape[1], 0).reshape(-1),  # counted from the first row's keys
            SegmentIds(own(segment_ids), own(key_segment_ids)),
            jax.vmap(functools.partial(_needed, size))(limits, segment_ids, key_segment_ids),
        )

    def mask_info(self, *, by_keys: bool = False) -> MaskInfo:
        """For kernels that loop over the keys of each block of queries, or (`by_keys`) the other way round."""
        limits: Any = self.limits  # Any: traced, where the class is typed for numpy arrays
        if self.needed is None:
            return MaskInfo(None, None, None, None, limits, is_dynamic_mask=True)
        loop = 1 if by_keys else 2
        first = jnp.arange(len(self.needed))[:, None, None] * self.needed.shape[loop]  # block of the row
        # The loop of each block is over those of its own row: [1, n * blocks, blocks], or [1, blocks, n * blocks].
        join = lambda x: jnp.concatenate(list(x), axis=2 - loop)[None].astype(jnp.int32)
        return MaskInfo(join(_read(self.needed, loop) + first), None, join(self.needed), None, limits, is_dynamic_mask=True)


def _block(size: int, blocks: tuple[int, ...]) -> int:
    """The largest block that pads `size` by at most an eighth, else the one that pads it least; small for small sizes.

    One of at least half that size that pads nothing is better: padding is a copy.
    """
    padding = lambda block: -size % block
    large = [block for block in blocks if block >= min(size, 256)]
    chosen = next((block for block in large if padding(block) * 8 <= size), min(large, key=padding))
    return next((block for block in large if padding(block) == 0 and 2 * block >= chosen), chosen)


def _needed(
    size: Sizes, limits: Int[Array, " T"], segment_ids: Int[Array, " T"], key_segment_ids: Int[Array, " C"]
) -> Bool[Array, "blocks_of_queries blocks_of_keys"]:
    """Whether any position of one block may see any key of another, by the largest limit and the span of the segments."""
    limits = limits.reshape(-1, size.queries)
    first, last = _span(segment_ids.reshape(-1, size.queries), limits > 0)
    of_keys = key_segment_ids.reshape(-1, size.keys)
    first_of_keys, last_of_keys = _span(of_keys, of_keys > 0)
    starts = jnp.arange(len(of_keys)) * size.keys
    return (starts < limits.max(1)[:, None]) & (first[:, None] <= last_of_keys) & (first_of_keys <= last[:, None])


def _span(segment_ids: Array, counted: Array) -> tuple[Array, Array]:
    """The first and the last segment of each block; if none is counted, a span that overlaps no other."""
    most = jnp.iinfo(jnp.int32).max
    return jnp.where(counted, segment_ids, most).min(1), jnp.where(counted, segment_ids, -1).max(1)


def _read(needed: Array, axis: int) -> Array:
    """The block to load at each step along `axis`; where none is needed, one that is already loaded, if possible."""
    number = jax.lax.broadcasted_iota(jnp.int32, needed.shape, axis)
    first = jnp.where(needed, number, needed.shape[axis]).min(axis, keepdims=True)
    last = jnp.where(needed, number, 0).max(axis, keepdims=True)
    return jnp.clip(number, first, last)
