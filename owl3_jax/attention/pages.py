"""Attention to pages, which many rows share.

A page holds the keys and values of one image in all hyper layers, or those of a few successive tokens of text in all layers. It
is in a pool, and each row has a table of the pages that it shows. Keys of images are in their pool without rotation, since rows
show an image at positions of their own: the score of a query at t and a key at p is R(t) q . R(p) k = R(t - p) q . k, so the
query is turned back by the image's position. That is exact, up to rounding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.attention.backends import choose_backend, paged
from owl3_jax.attention.inputs import BlockInputs, Plan
from owl3_jax.attention.page_placement import EVERYWHERE, PagePlacement
from owl3_jax.attention.parts import Part, merge, merge_all, no_part
from owl3_jax.attention.spread import merge_over
from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.quantized import Quantized, Vectors, dequantize
from owl3_jax.nn.rope import turned_back
from owl3_jax.nn.stacks import Layer


class Pages(NamedTuple):
    """A pool of P pages of L tokens."""

    keys: Vectors  # [M, P, K, L, D]; of images not rotated, of text rotated
    values: Vectors


class PageTable(NamedTuple):
    """The pages of each row, in order."""

    pages: Int[Array, "B I"]  # where a row has fewer, any page
    tokens: Int[Array, "B I"]  # of the L of each page, those that hold anything; 0 where a row has fewer pages


class PagedKeys(NamedTuple):
    """Keys and values by page: what `owl3_jax.attention.attend.attend` takes in place of blocks."""

    pages: Pages  # of all layers
    table: PageTable  # of B rows
    # `owl3_jax.nn.rope.turns_back` of the positions that images are seen at, [B, I, 1, 2 * D], once for all layers; None where
    # keys are rotated already.
    turns: Float[Array, "B I 1 _"] | None


class _Read(NamedTuple):
    """What is read by one layer, on one device."""

    q: Float[Array, "B H T D"]
    keys: PagedKeys
    visible: Visibility
    layer: Int[Array, ""]


def attend_to_pages(q: Float[Array, "B H T D"], keys: PagedKeys, visible: Visibility, plan: Plan, layer: Layer) -> Part:
    """As `owl3_jax.attention.attend.attend`, over pages; `visible` is over the I pages of each row.

    There are no gradients: pages are for answers.
    """
    if keys.table.pages.shape[1] == 0:
        return Part(jnp.zeros_like(q), no_part(q).lse)
    read = _Read(q, keys, visible, jnp.asarray(layer, jnp.int32))
    placement = PagePlacement.of(keys.pages.keys)
    if placement is None:
        is_one_device = jax.sharding.get_abstract_mesh().size <= 1
        part = _on_device(plan, read, may_use_kernel=is_one_device)  # which the compiler cannot split
    else:
        part = _spread(placement, plan, read)
    return Part(part.out.astype(q.dtype), part.lse)


def _spread(placement: PagePlacement, plan: Plan, read: _Read) -> Part:
    def on_device(read: _Read) -> Part:
        table, held = read.keys.table, read.keys.pages.keys.shape[1]
        numbers = placement.own(table.pages, held)
        is_here = numbers < held
        own = PageTable(jnp.where(is_here, numbers, 0), jnp.where(is_here, table.tokens, 0))
        seen = read.visible._replace(key_segment_ids=jnp.where(is_here, read.visible.key_segment_ids, 0))
        with jax.named_scope(f"pages_over_{placement.devices}"):  # `owl3_jax.tpu.kernels` reads it
            part = _on_device(plan, read._replace(keys=read.keys._replace(table=own), visible=seen), may_use_kernel=True)
        return merge_over(part, placement.pages)

    of_keys = PagedKeys._make([placement.of_pool, EVERYWHERE, EVERYWHERE])
    specs = _Read._make([placement.of_rows, of_keys, EVERYWHERE, EVERYWHERE])
    outside = Part._make([placement.of_rows, placement.of_rows])
    part: Part = jax.shard_map(on_device, in_specs=(specs,), out_specs=outside, check_vma=False)(read)
    return part


def _on_device(plan: Plan, read: _Read, *, may_use_kernel: bool) -> Part:
    in_chunks = functools.partial(_in_chunks, plan)
    is_quantized = isinstance(read.keys.pages.keys, Quantized)
    if not may_use_kernel or is_quantized or read.q.shape[2] > 1 or plan.backend not in ("auto", "pallas"):
        return in_chunks(read)
    elsewhere = functools.partial(_by_kernel, interpret=True) if plan.backend == "pallas" else in_chunks
    part: Part = jax.lax.platform_dependent(read, tpu=functools.partial(_by_kernel, interpret=False), default=elsewhere)
    return part


def _by_kernel(read: _Read, *, interpret: bool) -> Part:
    (keys, values), table, turns = read.keys.pages, read.keys.table, read.keys.turns
    assert not isinstance(keys, Quantized) and not isinstance(values, Quantized)  # which the kernel does not read
    tokens = jnp.where(read.visible.dense()[:, 0], table.tokens, 0)
    part = paged.attend(read.q[:, :, 0], keys, values, table.pages, tokens, turns, read.layer, interpret=interpret)
    return Part(part.out[:, :, None], part.lse[:, :, None])


def _in_chunks(plan: Plan, read: _Read) -> Part:
    """A few pages of all rows at a time, up to the last one that any row shows; those that no position sees are left out."""
    keys, images = read.keys, read.keys.table.pages.shape[1]
    size = min(images, plan.images_per_chunk or images)
    attend_to_few = functools.partial(_to_text if keys.turns is None else _to_images, plan)

    def step(number: Int[Array, ""], merged: Part) -> Part:
        start = jnp.minimum(number * size, images - size)
        seen = read.visible.part(start, size, number * size)
        here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (keys.table, keys.turns))
        some = lambda: merge(merged, attend_to_few(read._replace(keys=PagedKeys(keys.pages, *here), visible=seen)))
        part: Part = jax.lax.cond(seen.dense().any(), some, lambda: merged)
        return part

    shown = jnp.where(keys.table.tokens > 0, 1 + jnp.arange(images), 0).max()
    part: Part = jax.lax.fori_loop(0, -(-shown // size), step, no_part(read.q))
    return part


def _to_images(plan: Plan, read: _Read) -> Part:
    """Each pair of a row and an image is a row of its own, with a query of its own."""
    q, visible, layer, table, turns = read.q, read.visible, read.layer, read.keys.table, read.keys.turns
    assert turns is not None
    keys, values = read.keys.pages
    (B, _, T, _), J = q.shape, table.pages.shape[1]
    of_each = jnp.broadcast_to(q[:, None], (B, J, *q.shape[1:]))
    turned = turned_back(of_each, turns[:, :, :, None])  # [B, J, H, T, D]
    of_pages = lambda vectors: dequantize(jax.tree.map(lambda x: x[layer, table.pages.reshape(-1)], vectors), q.dtype)
    k, v = of_pages(keys), of_pages(values)  # [BJ, K, L, D]
    seen = jnp.moveaxis(visible.dense(), 2, 1).reshape(B * J, T).astype(jnp.int32)
    of_image = Visibility(seen, jnp.ones_like(seen), jnp.ones((B * J, 1), jnp.int32))
    block = BlockInputs(turned.reshape(B * J, *q.shape[1:]), k, v, of_image, plan.real_tokens)
    part = choose_backend(plan.backend, block).attend(block)
    return merge_all(Part(*(x.reshape(B, J, *x.shape[1:]) for x in part)))


def _to_text(plan: Plan, read: _Read) -> Part:
    """The pages of a row as one block of J * L keys. What is behind the last token may hold anything."""
    q, visible, layer, table = read.q, read.visible, read.layer, read.keys.table
    keys, values = read.keys.pages
    L = keys.shape[3]
    is_written = (jnp.arange(L) < table.tokens[:, :, None]).reshape(len(q), -1)  # [B, C]

    def of_rows(vectors: Vectors) -> Float[Array, "B K C D"]:
        pages = dequantize(jax.tree.map(lambda x: x[layer, table.pages], vectors), q.dtype)  # [B, J, K, L, D]
        joined = jnp.moveaxis(pages, 1, 2).reshape(len(q), pages.shape[2], -1, pages.shape[4])
        return jnp.where(is_written[:, None, :, None], joined, 0)

    whole = visible.over_tokens(visible.keys * L)
    seen = whole._replace(key_segment_ids=jnp.where(is_written, whole.key_segment_ids, 0))
    block = BlockInputs(q, of_rows(keys), of_rows(values), seen)
    return choose_backend(plan.backend, block).attend(block)
