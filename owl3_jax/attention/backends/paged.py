"""A kernel for TPUs: one position of each row attends to the pages of its table.

The table is known before the kernel starts (scalar prefetch), so that the page of the next step is on its way while this one
computes: nothing is gathered first. A page is read once for each row that shows it.
"""

import functools
from types import EllipsisType
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from owl3_jax.attention.parts import MASKED, Part
from owl3_jax.nn.padding import pad_to_multiple
from owl3_jax.nn.rope import quarter_turn

_SUBLANES, _LANES = 8, 128

Index = Array | int | slice | EllipsisType | tuple[Array | int | slice, ...]


@runtime_checkable
class Ref(Protocol):
    """Memory of the chip, as a kernel sees it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the block."""

    @property
    def dtype(self) -> jnp.dtype:
        """Of the block."""

    def __getitem__(self, index: Index) -> Array:
        """Reads."""

    def __setitem__(self, index: Index, value: Array) -> None:
        """Writes."""


def attend(
    q: Float[Array, "B H D"],
    keys: Float[Array, "M P K L D"],
    values: Float[Array, "M P K L D"],
    pages: Int[Array, "B I"],
    tokens: Int[Array, "B I"],
    turns: Float[Array, "B I 1 _"] | None,
    layer: Int[Array, ""],
    *,
    interpret: bool,
) -> Part:
    """As `owl3_jax.attention.pages.attend_to_pages`, of which this is the case of one position; in float32.

    Args:
        q: rotated queries.
        keys: not rotated, unless `turns` is None.
        values: as `keys`.
        pages: of each row.
        tokens: of the L of each page, those that the row sees; a page of which it sees none is not read.
        turns: what queries are turned back by for each page, as in `PagedKeys`.
        layer: which of the M.
        interpret: runs anywhere, slowly.

    Returns:
        Output [B, H, D] and log-sum-exp [B, H].
    """
    (B, H, D), (_, _, K, _, _), I = q.shape, keys.shape, pages.shape[1]
    by_key_head = lambda x: pad_to_multiple(x.reshape(B, K, H // K, D), 2, _SUBLANES)  # [B, K, G, D]
    queries = by_key_head(q.astype(jnp.float32) * D**-0.5)
    G = queries.shape[2]
    turning = () if turns is None else (quarter_turn(queries), turns)
    # What a row does not see is not read: its page is one that is there already.
    read = jax.lax.cummax(jnp.where(tokens > 0, jnp.arange(I), 0), axis=1)
    scalars = (layer[None], jnp.take_along_axis(pages, read, axis=1), tokens)
    of_row = pl.BlockSpec((None, K, G, D), lambda row, image, *_: (row, 0, 0, 0))
    # The compiler puts tokens into lanes where heads would leave some empty, and would copy the pool if it had to change that.
    has_tokens_in_lanes = D % _LANES != 0
    if has_tokens_in_lanes:
        keys, values = jnp.swapaxes(keys, 3, 4), jnp.swapaxes(values, 3, 4)
    page = (None, None, *keys.shape[2:])
    of_page = pl.BlockSpec(page, lambda row, image, layer, pages, _: (layer[0], pages[row, image], 0, 0, 0))
    of_image = pl.BlockSpec((None, None, 1, 2 * D), lambda row, image, *_: (row, image, 0, 0))
    of_lse = pl.BlockSpec((None, K, G, _LANES), lambda row, image, *_: (row, 0, 0, 0))
    statistics = pltpu.VMEM((K, G, _LANES), jnp.float32)
    out, lse = pl.pallas_call(
        functools.partial(_kernel, has_turns=bool(turning), has_tokens_in_lanes=has_tokens_in_lanes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(B, I),
            in_specs=[of_row, *([of_row, of_image] if turning else []), of_page, of_page],
            out_specs=[of_row, of_lse],
            scratch_shapes=[statistics, statistics, pltpu.VMEM((K, G, D), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, K, G, D), jnp.float32),
            jax.ShapeDtypeStruct((B, K, G, _LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="paged_attention",
    )(*scalars, queries, *turning, keys, values)
    heads = H // K
    return Part(out[:, :, :heads].reshape(B, H, D), lse[:, :, :heads, 0].reshape(B, H))


def _kernel(
    layer: Ref,
    pages: Ref,
    seen_tokens: Ref,
    queries: Ref,
    *others: Ref,
    has_turns: bool,
    has_tokens_in_lanes: bool,
) -> None:
    """One page of one row: a softmax that goes on from page to page."""
    del layer, pages
    turning, (keys, values, out, lse, top, total, sums) = others[:-7], others[-7:]
    row, image = pl.program_id(0), pl.program_id(1)
    key_heads, D = queries.shape[0], queries.shape[2]
    tokens, size = (1, 0) if has_tokens_in_lanes else (0, 1)  # dims of a head's keys
    L = keys.shape[1 + tokens]

    @pl.when(image == 0)
    def _begin() -> None:
        top[...] = jnp.full(top.shape, MASKED, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    @pl.when(seen_tokens[row, image] != 0)
    def _add() -> None:
        is_seen = jax.lax.broadcasted_iota(jnp.int32, (queries.shape[1], L), 1) < seen_tokens[row, image]
        holds_value = jax.lax.broadcasted_iota(jnp.int32, values.shape[1:], tokens) < seen_tokens[row, image]
        for head in range(key_heads):
            q = queries[head]
            if has_turns:
                quarter_turned, turns = turning
                q = q * turns[:, :D] + quarter_turned[head] * turns[:, D:]
            q = q.astype(keys.dtype)
            scores = _dot(q, keys[head], size)  # [G, L]
            scores = jnp.where(is_seen, scores, MASKED)
            before = top[head, :, :1]
            now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
            weights, kept = jnp.exp(scores - now), jnp.exp(before - now)
            total[head] = jnp.broadcast_to(total[head, :, :1] * kept + weights.sum(axis=1, keepdims=True), total.shape[1:])
            written = jnp.where(holds_value, values[head], jnp.zeros((), values.dtype))  # the rest may be no number
            sums[head] = sums[head] * kept + _dot(weights.astype(values.dtype), written, tokens)
            top[head] = jnp.broadcast_to(now, top.shape[1:])

    @pl.when(image == pl.num_programs(1) - 1)
    def _end() -> None:
        is_any = total[...] > 0
        whole = jnp.where(is_any, total[...], 1.0)
        out[...] = sums[...] / whole[:, :, :1]
        lse[...] = jnp.where(is_any, top[...] + jnp.log(whole), MASKED)


def _dot(x: Float[Array, "G X"], y: Float[Array, "..."], dim: int) -> Float[Array, "G Y"]:
    """Sums over the last dim of `x` and this one of `y`, in float32."""
    # A kernel has only one precision for bfloat16 products, whatever `jax_default_matmul_precision` is.
    precision = jax.lax.Precision.DEFAULT if x.dtype == jnp.bfloat16 else None
    return jax.lax.dot_general(x, y, (((1,), (dim,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
