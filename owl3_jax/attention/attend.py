"""The entry to all attention, and its one backward pass.

The backward pass keeps only the output and the log-sum-exp and computes the scores again, a chunk at a time. It is the same for
every backend, for one device and for many.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from owl3_jax.attention.chunks import attend_in_chunks, gradients_in_chunks
from owl3_jax.attention.inputs import AttentionInputs, KeyBlock, OutputGradient, Plan
from owl3_jax.attention.pages import PagedKeys, attend_to_pages
from owl3_jax.attention.parts import Part, merge, no_part
from owl3_jax.attention.spread import Placement
from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.remat import attended
from owl3_jax.nn.stacks import Layer, select_layer

# Blocks whose attention may run concurrently. With one, the cores of a CPU wait for each other after every product.
_BLOCKS_AT_ONCE = 4


def attend(
    q: Float[Array, "B H T D"],
    keys: Sequence[KeyBlock] | PagedKeys,
    visible: Visibility | None,
    plan: Plan,
    layer: Layer = 0,
) -> Part:
    """Grouped-query attention over the keys of one layer; scores and softmax in float32.

    Args:
        q: rotated queries.
        keys: rotated keys and values of all layers, [M, B', K, I, L, D]: those of I images of L tokens, or of I tokens of
            text with L = 1, a part of the I in each block. Where B' is less than B, a row of keys serves B / B' successive
            rows of queries. Or pages, of B rows.
        visible: over all I, each seen or not with all of its L tokens; [B', B / B' * T]. None: every position sees all.
        plan: how it runs.
        layer: which of the M.

    Returns:
        The output in the dtype of `q` (zero where a position sees nothing) and the log-sum-exp of the scores. Both have
        gradients, but for pages.
    """
    if isinstance(keys, PagedKeys):
        if visible is None:
            raise ValueError("attention over pages needs to know what is visible")
        return attend_to_pages(q, keys, visible, plan, layer)
    rows = _images_shape(keys[0])[0]
    if rows == len(q):
        return _attend_to_blocks(q, keys, visible, plan, layer)
    part = _attend_to_blocks(_join_rows(q, rows), keys, visible, plan, layer)
    return Part(_split_rows(part.out, len(q)), _split_rows(part.lse, len(q)))


def _images_shape(block: KeyBlock) -> tuple[int, ...]:
    """[B, K, I, L, D] of a block."""
    return select_layer(block[0], 0)[0].shape[1:]


def _join_rows(q: Float[Array, "B H T D"], rows: int) -> Float[Array, "R H nT D"]:
    """The queries that share a row of keys as one row: R = `rows`, n = B / R."""
    B, H, T, D = q.shape
    return jnp.moveaxis(q.reshape(rows, B // rows, H, T, D), 1, 2).reshape(rows, H, -1, D)


def _split_rows(x: Shaped[Array, "R H nT *D"], rows: int) -> Shaped[Array, "B H T *D"]:
    """Undoes `_join_rows` for B = `rows`."""
    R, H, positions, *D = x.shape
    n = rows // R
    return jnp.moveaxis(x.reshape(R, H, n, positions // n, *D), 2, 1).reshape(rows, H, positions // n, *D)


def _attend_to_blocks(
    q: Float[Array, "B H T D"], blocks: Sequence[KeyBlock], visible: Visibility | None, plan: Plan, layer: Layer
) -> Part:
    """Several blocks are taken in groups: one that no position sees costs nothing, one that all positions see needs no mask."""
    if len(blocks) == 1:
        return _attend_to_block(q, blocks[0], visible, plan, layer)
    if visible is None:
        raise ValueError("attention over several blocks needs to know what is visible")
    sizes = [_images_shape(block)[2] for block in blocks]
    starts = np.cumsum([0, *sizes]).tolist()
    seen = [visible.part(start, size) for start, size in zip(starts, sizes, strict=False)]
    merged = no_part(q)
    for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
        group = slice(first, first + _BLOCKS_AT_ONCE)
        merged = _merge_group(merged, q, blocks[group], seen[group], plan, layer)
    return Part(merged.out.astype(q.dtype), merged.lse)


def _merge_group(
    merged: Part,
    q: Float[Array, "B H T D"],
    blocks: Sequence[KeyBlock],
    visible: Sequence[Visibility],
    plan: Plan,
    layer: Layer,
) -> Part:
    """`merged`, and attention over the blocks of one group."""

    def with_blocks(merged: Part, masks: Sequence[Visibility | None]) -> Part:
        parts = [_attend_to_block(q, block, mask, plan, layer) for block, mask in zip(blocks, masks, strict=True)]
        return functools.reduce(merge, parts, merged)

    seen = jnp.concatenate([of_block.dense() for of_block in visible], axis=2)
    branches = (  # if no position sees the group, if some do, if all do
        lambda merged: merged,
        lambda merged: with_blocks(merged, visible),
        lambda merged: with_blocks(merged, [None] * len(blocks)),
    )
    part: Part = jax.lax.switch(seen.any().astype(jnp.int32) + seen.all(), branches, merged)
    return part


def _attend_to_block(q: Float[Array, "B H T D"], block: KeyBlock, visible: Visibility | None, plan: Plan, layer: Layer) -> Part:
    keys, row = select_layer(block[0], layer)
    values, _ = select_layer(block[1], layer)
    if keys.shape[3] == 0:
        return Part(jnp.zeros_like(q), no_part(q).lse)
    part: Part = _attend_to_layer(plan, AttentionInputs(q, keys, values, jnp.asarray(row, jnp.int32), visible))
    return part


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_to_layer(plan: Plan, inputs: AttentionInputs) -> Part:
    placement = Placement.of(plan.dims, inputs)
    part = placement.attend(plan, inputs) if placement else attend_in_chunks(plan, inputs)
    return Part(part.out.astype(inputs.q.dtype), part.lse)


def _forward(plan: Plan, inputs: AttentionInputs) -> tuple[Part, tuple[AttentionInputs, Part]]:
    part: Part = _attend_to_layer(plan._replace(reads_lse=True), inputs)  # the backward pass reads it
    if plan.dims.keys is None:
        # Not for images: in a scan over layers, all N layers would reserve memory for what only M of them compute.
        part = Part(attended(part.out), attended(part.lse))
    return part, (inputs, part)


def _backward(plan: Plan, residuals: tuple[AttentionInputs, Part], cotangents: Part) -> tuple[AttentionInputs]:
    inputs, part = residuals
    inputs = inputs._replace(layer=jnp.asarray(inputs.layer))  # a constant comes back as a numpy array
    d_out, d_lse = cotangents
    shift = d_lse - jnp.sum(d_out.astype(jnp.float32) * part.out.astype(jnp.float32), axis=-1)  # [B, H, T]
    given = OutputGradient(part.lse, shift, d_out)
    placement = Placement.of(plan.dims, inputs)
    found = placement.gradients(plan, inputs, given) if placement else gradients_in_chunks(plan, inputs, given)
    into_stack = lambda stack, layer: jnp.zeros_like(stack).at[inputs.layer].set(layer)
    d_keys, d_values = into_stack(inputs.keys, found.d_k), into_stack(inputs.values, found.d_v)
    # Whole numbers, `layer` and `visible`, have no gradient.
    return (AttentionInputs._make([found.d_q.astype(inputs.q.dtype), d_keys, d_values, None, None]),)


_attend_to_layer.defvjp(_forward, _backward)
