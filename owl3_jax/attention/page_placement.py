"""Pools of pages over a mesh: each device holds some of the pages, in some of the heads.

Every device takes the queries of all rows and attends to those of their pages that it holds; the parts are merged by their
log-sum-exp. So a pool may be as large as the memory of all devices together, and a page is on one of them whoever shows it. The
compiler can split neither kernels nor writes to places that only the running program knows, so both are written out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from owl3_jax.nn.quantized import Quantized
from owl3_jax.sharding import MeshAxes, partition_spec

EVERYWHERE = PartitionSpec()

Pool = Float[Array, "..."] | Quantized  # also what is written to it, or read from it


class PagePlacement(NamedTuple):
    """Mesh axes that split pools [M, P, K, L, D]."""

    pages: MeshAxes
    heads: MeshAxes

    @classmethod
    def of(cls, pool: Pool) -> "PagePlacement | None":
        """By the mesh and the rules in force; None where nothing is split."""
        spec = partition_spec(("page", "act_kv_heads"), pool.shape[1:3])
        return cls(*spec) if spec is not None and any(spec) else None

    @property
    def devices(self) -> int:
        """That hold different pages; inside of a `shard_map`."""
        return int(jax.lax.axis_size(self.pages)) if self.pages else 1

    @property
    def of_pool(self) -> PartitionSpec:
        """How pools are split."""
        return PartitionSpec(None, self.pages, self.heads)

    @property
    def of_rows(self) -> PartitionSpec:
        """How queries, and what is written for rows, are split: [B, H, ...]."""
        return PartitionSpec(None, self.heads)

    def own(self, numbers: Int[Array, "*dims"], pages: int) -> Int[Array, "*dims"]:
        """Numbers of pages among the P = `pages` of this device; P for those that other devices hold."""
        if not self.pages:
            return numbers
        local = numbers - jax.lax.axis_index(self.pages) * pages
        return jnp.where((local >= 0) & (local < pages), local, pages)


def write_tokens(pool: Pool, new: Pool, layer: Int[Array, ""], pages: Int[Array, "B T"], slots: Int[Array, "B T"]) -> Pool:
    """A pool with the keys or values [B, K, T, D] of tokens in one layer. Those with a page outside the pool are not written.

    `new` has the form of the pool, floats or int8.
    """
    placement = PagePlacement.of(pool)

    def on_device(pool: Pool, new: Pool, layer: Array, pages: Array, slots: Array) -> Pool:
        own = placement.own(pages, pool.shape[1]) if placement else pages
        # Index arrays with a slice between them: B and T come first.
        write = lambda old, x: old.at[layer, own, :, slots].set(jnp.swapaxes(x, 1, 2), mode="drop")
        with jax.named_scope("into_pages"):  # `owl3_jax.tpu.traffic` reads it
            written: Pool = jax.tree.map(write, pool, new)
        return written

    if placement is None:
        return on_device(pool, new, layer, pages, slots)
    specs = (placement.of_pool, placement.of_rows, EVERYWHERE, EVERYWHERE, EVERYWHERE)
    spread = jax.shard_map(on_device, in_specs=specs, out_specs=placement.of_pool, check_vma=False)
    spread_out: Pool = spread(pool, new, layer, pages, slots)
    return spread_out


def write_pages(pool: Pool, new: Pool, numbers: Int[Array, " J"]) -> Pool:
    """A pool with J whole pages, [M, J, K, L, D]. Those with a number outside the pool are not written."""
    placement = PagePlacement.of(pool)

    def on_device(pool: Pool, new: Pool, numbers: Array) -> Pool:
        own = placement.own(numbers, pool.shape[1]) if placement else numbers
        written: Pool = jax.tree.map(lambda old, x: old.at[:, own].set(x, mode="drop"), pool, new)
        return written

    if placement is None:
        return on_device(pool, new, numbers)
    specs = (placement.of_pool, PartitionSpec(None, None, placement.heads), EVERYWHERE)
    spread = jax.shard_map(on_device, in_specs=specs, out_specs=placement.of_pool, check_vma=False)
    spread_out: Pool = spread(pool, new, numbers)
    return spread_out


def read_page(pool: Pool, number: Int[Array, ""]) -> Pool:
    """One page of a pool, [M, 1, K, L, D], on all devices that hold its heads."""
    placement = PagePlacement.of(pool)

    def on_device(pool: Pool, number: Array) -> Pool:
        own = placement.own(number, pool.shape[1]) if placement else number
        taken = jax.tree.map(lambda x: x.at[:, own[None]].get(mode="fill", fill_value=0), pool)
        if placement and placement.pages:
            taken = jax.tree.map(lambda x: jax.lax.psum(x, placement.pages), taken)
        page: Pool = taken
        return page

    if placement is None:
        return on_device(pool, number)
    outside = PartitionSpec(None, None, placement.heads)
    spread = jax.shard_map(on_device, in_specs=(placement.of_pool, EVERYWHERE), out_specs=outside, check_vma=False)
    spread_out: Pool = spread(pool, number)
    return spread_out
