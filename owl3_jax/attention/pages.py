"""Attention to images that many rows share.

An image's keys and values in all hyper layers are a page of a pool, and each row has a table of the pages that it shows, each
at a position of its own. Keys in a pool are not rotated: the score of a query at t and a key at p is
R(t) q . R(p) k = R(t - p) q . k, so the query is turned back by the image's position. That is exact, up to rounding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.attention.backends import choose_backend, paged
from owl3_jax.attention.inputs import BlockInputs, Plan
from owl3_jax.attention.parts import Part, merge, merge_all, no_part
from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.quantized import Quantized, Vectors, dequantize
from owl3_jax.nn.rope import rope
from owl3_jax.nn.stacks import Layer


class Pages(NamedTuple):
    """Keys, not rotated, and values of P images in all hyper layers."""

    keys: Vectors  # [M, P, K, L, D]
    values: Vectors


class PageTable(NamedTuple):
    """The images of each row, in order."""

    pages: Int[Array, "B I"]  # where a row has fewer, any page
    positions: Int[Array, "B I"]  # that their keys are seen at: of the placeholder's first token, plus the model's offset


class _Read(NamedTuple):
    """What is read by one layer, on one device."""

    q: Float[Array, "B H T D"]
    pages: Pages
    table: PageTable
    visible: Visibility
    layer: Int[Array, ""]


def attend_to_pages(
    q: Float[Array, "B H T D"],
    pages: Pages,
    table: PageTable,
    visible: Visibility,
    plan: Plan,
    layer: Layer,
    theta: float,
) -> Part:
    """Grouped-query attention to the images of a table; scores and softmax in float32.

    Args:
        q: rotated queries.
        pages: of all hyper layers.
        table: of B rows.
        visible: over the I images of each row.
        plan: how it runs.
        layer: which of the M.
        theta: the base of the rotary position embedding.

    Returns:
        As `owl3_jax.attention.attend.attend`. There are no gradients: pages are for answers.
    """
    if table.pages.shape[1] == 0:
        return Part(jnp.zeros_like(q), no_part(q).lse)
    read = _Read(q, pages, table, visible, jnp.asarray(layer, jnp.int32))
    in_chunks = functools.partial(_in_chunks, plan, theta)
    is_one_device = jax.sharding.get_abstract_mesh().size <= 1  # the compiler cannot split a kernel
    if is_one_device and q.shape[2] == 1 and not isinstance(pages.keys, Quantized) and plan.backend in ("auto", "pallas"):
        by_kernel = functools.partial(_by_kernel, plan, theta)
        elsewhere = functools.partial(by_kernel, interpret=True) if plan.backend == "pallas" else in_chunks
        part: Part = jax.lax.platform_dependent(read, tpu=functools.partial(by_kernel, interpret=False), default=elsewhere)
    else:
        part = in_chunks(read)
    return Part(part.out.astype(q.dtype), part.lse)


def _by_kernel(plan: Plan, theta: float, read: _Read, *, interpret: bool) -> Part:
    q, (keys, values), table, visible, layer = read
    assert not isinstance(keys, Quantized) and not isinstance(values, Quantized)  # which the kernel does not read
    seen, real_tokens = visible.dense()[:, 0], plan.real_tokens
    part = paged.attend(
        q[:, :, 0], keys, values, *table, seen, layer, real_tokens=real_tokens, theta=theta, interpret=interpret
    )
    return Part(part.out[:, :, None], part.lse[:, :, None])


def _in_chunks(plan: Plan, theta: float, read: _Read) -> Part:
    """A few images of all rows at a time; those that no position sees are left out."""
    images = read.table.pages.shape[1]
    size = min(images, plan.images_per_chunk or images)

    def step(merged: Part, number: Int[Array, ""]) -> tuple[Part, None]:
        start = jnp.minimum(number * size, images - size)
        seen = read.visible.part(start, size, number * size)
        here = PageTable(*(jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in read.table))
        some = lambda: merge(merged, _attend_to_few(plan, theta, read._replace(table=here, visible=seen)))
        return jax.lax.cond(seen.dense().any(), some, lambda: merged), None

    return jax.lax.scan(step, no_part(read.q), jnp.arange(-(-images // size)))[0]


def _attend_to_few(plan: Plan, theta: float, read: _Read) -> Part:
    """Each pair of a row and an image is a row of its own, with a query of its own."""
    q, (keys, values), table, visible, layer = read
    (B, _, T, _), J = q.shape, table.pages.shape[1]
    of_each = jnp.broadcast_to(q[:, None], (B, J, *q.shape[1:]))
    turned = rope(of_each, -table.positions[:, :, None, None], theta)  # [B, J, H, T, D]
    of_pages = lambda vectors: dequantize(jax.tree.map(lambda x: x[layer, table.pages.reshape(-1)], vectors), q.dtype)
    seen = jnp.moveaxis(visible.dense(), 2, 1).reshape(B * J, T).astype(jnp.int32)
    of_image = Visibility(seen, jnp.ones_like(seen), jnp.ones((B * J, 1), jnp.int32))
    block = BlockInputs(turned.reshape(B * J, *q.shape[1:]), of_pages(keys), of_pages(values), of_image, plan.real_tokens)
    part = choose_backend(plan.backend, block).attend(block)
    return merge_all(Part(*(x.reshape(B, J, *x.shape[1:]) for x in part)))
