"""Which keys each text position sees, as two numbers for the position and one for each key.

Keys of a segment are in the order of their positions, so a position sees a prefix of them. No array of positions x keys exists
until plain XLA masks the scores, which have that shape anyway; the kernels never need one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


class Visibility(NamedTuple):
    """Position t sees key c if both are of the same segment and c < limits[t]."""

    limits: Int[Array, "B T"]  # 0 where nothing is seen
    segment_ids: Int[Array, "B T"]
    key_segment_ids: Int[Array, "B C"]  # 0 is never seen

    @property
    def sees(self) -> Bool[Array, "B T"]:
        """Whether a position sees any key."""
        return self.limits > 0

    @property
    def keys(self) -> int:
        """C."""
        return self.key_segment_ids.shape[1]

    def dense(self, tokens: int | None = None, real_tokens: int | None = None) -> Bool[Array, "B T C"]:
        """Which keys a position sees. With `tokens`, keys are images, and the C are as in `over_tokens`."""
        same = self.segment_ids[:, :, None] == self.key_segment_ids[:, None, :]
        seen = same & (jnp.arange(self.keys) < self.limits[:, :, None])
        if tokens is None:
            return seen
        return _where_real(jnp.repeat(seen, tokens // self.keys, axis=2), tokens // self.keys, real_tokens)

    def part(self, start: Int[Array, ""] | int, size: int, first: Int[Array, ""] | int = 0) -> "Visibility":
        """The visibility of `size` keys from `start` on; those before `first` are not seen."""
        numbers = start + jnp.arange(size)
        key_segment_ids = jax.lax.dynamic_slice_in_dim(self.key_segment_ids, start, size, axis=1)
        return self._replace(limits=self.limits - start, key_segment_ids=jnp.where(numbers >= first, key_segment_ids, 0))

    def over_tokens(self, tokens: int, real_tokens: int | None = None) -> "Visibility":
        """The same, with the `tokens` of all images as the keys in place of the images.

        `real_tokens` of each image can be seen, those after them are padding. None: all can.
        """
        times = tokens // self.keys
        key_segment_ids = _where_real(jnp.repeat(self.key_segment_ids, times, axis=1), times, real_tokens)
        return self._replace(limits=self.limits * times, key_segment_ids=key_segment_ids)


def _where_real(x: Shaped[Array, "*dims C"], tokens: int, real_tokens: int | None) -> Shaped[Array, "*dims C"]:
    """Zero in the padding that follows the `real_tokens` of each image of `tokens`."""
    if real_tokens in (None, tokens):
        return x
    return jnp.where(jnp.arange(x.shape[-1]) % tokens < real_tokens, x, jnp.zeros((), x.dtype))


def everything(rows: int, positions: int, keys: int) -> Visibility:
    """B = `rows` rows of T `positions` that all see all C `keys`."""
    segment = functools.partial(jnp.ones, dtype=jnp.int32)
    return Visibility(jnp.full((rows, positions), keys, jnp.int32), segment((rows, positions)), segment((rows, keys)))


def visibility(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    key_positions: Int[Array, "B C"],
    key_segment_ids: Int[Array, "B C"],
    *,
    inclusive: bool = True,
) -> Visibility:
    """Text sees the text or the images of its own segment at earlier positions (`inclusive`: or at the same one).

    The position of an image is that of the first token of its placeholder. Padding (segment 0) sees nothing and is not seen.
    Rows see columns in these two examples: two packed samples of two tokens and one padding token over their own text, then
    five tokens over images at positions 1 and 3:

        1 0 0 0 0    strict   0 0   inclusive   0 0
        1 1 0 0 0             0 0               1 0
        0 0 1 0 0             1 0               1 0
        0 0 1 1 0             1 0               1 1
        0 0 0 0 0             1 1               1 1
    """
    same = (segment_ids[:, :, None] == key_segment_ids[:, None, :]) & (segment_ids[:, :, None] != 0)
    distance = positions[:, :, None] - key_positions[:, None, :]
    seen = same & (distance >= 0 if inclusive else distance > 0)
    # One reduction that XLA fuses: `seen` is not stored.
    limits = jnp.where(seen, 1 + jnp.arange(key_positions.shape[1]), 0).max(axis=2, initial=0)
    return Visibility(limits, segment_ids, key_segment_ids)
