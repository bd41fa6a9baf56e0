"""Attention over a mesh: each device computes its own rows and heads, for its own positions or its own keys.

If positions are split, every device has all keys (text over itself). If keys are split, every device has all positions, and the
parts are merged by their log-sum-exp (text over images: no device ever gathers the images of the others). The compiler can't
split kernels, so this is written out, forward and backward, with explicit collectives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from owl3_jax.attention.chunks import attend_in_chunks, gradients_in_chunks
from owl3_jax.attention.inputs import AttentionInputs, Dims, Gradients, OutputGradient, Plan
from owl3_jax.attention.parts import Part
from owl3_jax.attention.visibility import Visibility
from owl3_jax.sharding import MeshAxes, axis_names, partition_spec


class Placement(NamedTuple):
    """Mesh axes that split each dim."""

    rows: MeshAxes
    heads: MeshAxes
    positions: MeshAxes  # of q and of the output
    gathered: bool  # every device takes all positions, because the keys are split by the same axes
    keys: MeshAxes

    @classmethod
    def of(cls, dims: Dims, inputs: AttentionInputs) -> "Placement | None":
        """By the mesh and the rules in force; None on one device."""
        B, K, I = inputs.keys.shape[1:4]
        spec = partition_spec((dims.rows, "act_kv_heads", dims.positions), (B, K, inputs.q.shape[2]))
        of_keys = partition_spec((dims.rows, "act_kv_heads", dims.keys), (B, K, I))
        if spec is None or of_keys is None or jax.sharding.get_abstract_mesh().size == 1:
            return None
        rows, heads, positions = spec
        if positions != of_keys[2] and set(axis_names(positions)) & set(axis_names(of_keys[2])):
            positions = None
        found = cls(rows, heads, positions, positions is not None and positions == of_keys[2], of_keys[2])
        return found if any(found) else None

    def attend(self, plan: Plan, inputs: AttentionInputs) -> Part:
        """`attend_in_chunks` on all devices."""

        def on_device(inputs: AttentionInputs) -> Part:
            part = attend_in_chunks(plan, self._with_own_keys(inputs))
            return merge_over(part, self.keys, split=self.gathered)

        outer = self._spec_of_positions(inside=False)
        spread = jax.shard_map(
            on_device, in_specs=(self._specs_of(inputs),), out_specs=Part._make([outer, outer]), check_vma=False
        )
        part: Part = spread(inputs)
        return part

    def gradients(self, plan: Plan, inputs: AttentionInputs, given: OutputGradient) -> Gradients:
        """`gradients_in_chunks` on all devices."""

        def on_device(inputs: AttentionInputs, given: OutputGradient) -> Gradients:
            found = gradients_in_chunks(plan, self._with_own_keys(inputs), given)
            if self.keys:
                found = found._replace(d_q=_sum_over(found.d_q, self.keys, split=self.gathered))
            if self._queries:
                over_positions = lambda x: jax.lax.psum(x, self.positions)
                found = found._replace(d_k=over_positions(found.d_k), d_v=over_positions(found.d_v))
            return found

        of_keys = PartitionSpec(self.rows, self.heads, self.keys)
        inner = self._spec_of_positions(inside=True)
        spread = jax.shard_map(
            on_device,
            in_specs=(self._specs_of(inputs), OutputGradient._make([inner, inner, inner])),
            out_specs=Gradients._make([self._spec_of_positions(inside=False), of_keys, of_keys]),
            check_vma=False,
        )
        found: Gradients = spread(inputs, given)
        return found

    def _specs_of(self, inputs: AttentionInputs) -> AttentionInputs:
        """How each of the inputs is split: a PartitionSpec in its place."""
        of_keys, of_position = PartitionSpec(None, self.rows, self.heads, self.keys), PartitionSpec(self.rows, self._queries)
        visible = inputs.visible and Visibility._make([of_position, of_position, PartitionSpec(self.rows, self.keys)])
        return AttentionInputs._make([self._spec_of_positions(inside=True), of_keys, of_keys, PartitionSpec(), visible])

    @property
    def _queries(self) -> MeshAxes:
        """Axes of the positions on a device."""
        return None if self.gathered else self.positions

    def _spec_of_positions(self, *, inside: bool) -> PartitionSpec:
        return PartitionSpec(self.rows, self.heads, self._queries if inside else self.positions)

    def _with_own_keys(self, inputs: AttentionInputs) -> AttentionInputs:
        """Limits counted from the first image of this device."""
        visible = inputs.visible
        if visible is None or self.keys is None:
            return inputs
        first = jax.lax.axis_index(self.keys) * inputs.keys.shape[3]
        return inputs._replace(visible=visible._replace(limits=visible.limits - first))


def merge_over(part: Part, axes: MeshAxes, *, split: bool = False) -> Part:
    """As `parts.merge`, over the devices along mesh axes, each of which has attended to other keys; in float32.

    `split`: each device keeps an equal share of the positions T. No axes: the part itself.
    """
    if not axes:
        return part
    top = jax.lax.pmax(part.lse, axes)
    share = jnp.exp(part.lse - top)
    own = lambda x: _own_positions(x, axes) if split else x
    total = own(jax.lax.psum(share, axes))
    out = _sum_over(part.out * share[..., None], axes, split=split) / total[..., None]
    return Part(out, own(top) + jnp.log(total))


def _sum_over(x: Float[Array, "B H T D"], axes: MeshAxes, *, split: bool) -> Float[Array, "B H T2 D"]:
    if split:
        return jax.lax.psum_scatter(x, axes, scatter_dimension=2, tiled=True)
    return jax.lax.psum(x, axes)


def _own_positions(x: Shaped[Array, "B H T"], axes: MeshAxes) -> Shaped[Array, "B H T2"]:
    size = x.shape[2] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, axis=2)
