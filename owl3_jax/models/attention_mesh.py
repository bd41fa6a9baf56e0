"""Attention over a mesh: each device computes its own rows and heads, of its own positions or its own keys.

Positions may be spread, then every device has all keys (text over itself). Keys may be spread, then every device has all
positions, and parts are merged by their log-sum-exp (text over images: no device ever gathers the images of the others).
Kernels can't be split by the compiler, so this is written out, forward and backward, with each collective in sight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from owl3_jax.models.partitioning import MeshAxes, partition_spec
from owl3_jax.models.visibility import Visibility


class Dims(NamedTuple):
    """Logical names of dims of queries and keys (`owl3_jax.sharding.RULES`)."""

    rows: str
    positions: str
    keys: str | None  # None: all keys on every device


class Spread(NamedTuple):
    """Mesh axes of each dim; all None without a mesh."""

    rows: MeshAxes = None
    heads: MeshAxes = None
    positions: MeshAxes = None  # of q and of the output
    gathered: bool = False  # every device takes all positions, because the keys lie over the same axes
    keys: MeshAxes = None

    @classmethod
    def of(cls, dims: Dims, q: Array, keys: Any) -> "Spread":
        """By the mesh and the rules in force, for q [B, H, T, D] and keys [M, B, K, I, L, D]."""
        B, K, I = keys.shape[1:4]
        spec = partition_spec((dims.rows, "act_kv_heads", dims.positions), (B, K, q.shape[2]))
        of_keys = partition_spec((dims.rows, "act_kv_heads", dims.keys), (B, K, I))
        if spec is None or of_keys is None or jax.sharding.get_abstract_mesh().size == 1:
            return cls()
        rows, heads, positions = spec
        if positions != of_keys[2] and set(_names(positions)) & set(_names(of_keys[2])):
            positions = None
        return cls(rows, heads, positions, positions is not None and positions == of_keys[2], of_keys[2])

    def forward(self, local: Callable[..., Any], q, keys, values, layer, visible) -> tuple[Array, Array]:
        """`local`, which is `attention_chunks.forward` for one device, on all of them."""

        def device(q, keys, values, layer, visible):
            out, lse = local(q, keys, values, layer, self._of_own_keys(visible, keys))
            return self._merge(out, lse) if self.keys else (out, lse)

        outer = self._spec_of_positions(inside=False)
        return self._over_devices(device, (outer, outer), (q, keys, values, layer, visible))

    def backward(self, local: Callable[..., Any], q, keys, values, layer, visible, *others) -> tuple[Array, Array, Array]:
        """`local`, which is `attention_chunks.backward` for one device, on all of them."""

        def device(q, keys, values, layer, visible, *others):
            d_q, d_k, d_v = local(q, keys, values, layer, self._of_own_keys(visible, keys), *others)
            d_q = self._sum(d_q) if self.keys else d_q
            return d_q, *(jax.lax.psum(x, self.positions) if self._queries else x for x in (d_k, d_v))

        of_keys = PartitionSpec(self.rows, self.heads, self.keys)
        outputs = (self._spec_of_positions(inside=False), of_keys, of_keys)
        return self._over_devices(device, outputs, (q, keys, values, layer, visible, *others))

    def _over_devices(self, device, outputs, inputs):
        if self == Spread():
            return device(*inputs)
        inner = self._spec_of_positions(inside=True)
        of_keys = PartitionSpec(None, self.rows, self.heads, self.keys)
        of_position = PartitionSpec(self.rows, self._queries)
        of_visible: tuple[Any, Any, Any] = (of_position, of_position, PartitionSpec(self.rows, self.keys))
        visible = inputs[4] and Visibility(*of_visible)
        others = [inner] * (len(inputs) - 5)
        specs = (inner, of_keys, of_keys, PartitionSpec(), visible, *others)
        return jax.shard_map(device, in_specs=specs, out_specs=outputs, check_vma=False)(*inputs)

    @property
    def _queries(self) -> MeshAxes:
        """Axes of the positions on a device."""
        return None if self.gathered else self.positions

    def _spec_of_positions(self, *, inside: bool) -> PartitionSpec:
        return PartitionSpec(self.rows, self.heads, self._queries if inside else self.positions)

    def _of_own_keys(self, visible, keys):
        if visible is None or self.keys is None:
            return visible
        return visible._replace(limits=visible.limits - jax.lax.axis_index(self.keys) * keys.shape[3])

    def _merge(self, out, lse):
        top = jax.lax.pmax(lse, self.keys)
        share = jnp.exp(lse - top)
        total = self._own_positions(jax.lax.psum(share, self.keys))
        return self._sum(out * share[..., None]) / total[..., None], self._own_positions(top) + jnp.log(total)

    def _sum(self, x):
        """Over the devices that keys are spread over, of a device's own positions (dim 2)."""
        if self.gathered:
            return jax.lax.psum_scatter(x, self.keys, scatter_dimension=2, tiled=True)
        return jax.lax.psum(x, self.keys)

    def _own_positions(self, x):
        if not self.gathered:
            return x
        size = x.shape[2] // jax.lax.axis_size(self.keys)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(self.keys) * size, size, axis=2)


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()
