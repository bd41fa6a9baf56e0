"""What the logical names of dims mean for the mesh and the rules in force (`owl3_jax.sharding.use_mesh`)."""

import math

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

MeshAxes = str | tuple[str, ...] | None  # that split one dim


def partition_spec(names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec | None:
    """How the mesh and the rules in force split an array with dims of these logical names; None where none are set.

    Raises ValueError for a name that no rule has.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return None
    unknown = set(names) - {None} - {name for name, _ in rules}
    if unknown:
        raise ValueError(f"{names}: no rule for {', '.join(map(str, unknown))}; name a dim as owl3_jax.sharding.RULES does")
    return without_uneven_axes(nn.logical_to_mesh_axes(names) or PartitionSpec(), shape, mesh)


def without_uneven_axes(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`spec` with only those axes, larger than one, that divide their dims; of several for one dim the first ones that do."""
    return PartitionSpec(*(_dividing_axes(axes, size, mesh) for axes, size in zip(spec, shape, strict=True)))


def _dividing_axes(axes: MeshAxes, size: int, mesh: Mesh | AbstractMesh) -> MeshAxes:
    kept: list[str] = []
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        if size % (mesh.shape[axis] * math.prod(mesh.shape[other] for other in kept)):
            break
        kept += [axis] if mesh.shape[axis] > 1 else []
    return tuple(kept) if len(kept) > 1 else kept[0] if kept else None


def devices_along(name: str) -> int:
    """Devices that a dim of this logical name is split over, by the mesh and the rules in force."""
    mesh, axes = jax.sharding.get_abstract_mesh(), (nn.logical_to_mesh_axes((name,)) or (None,))[0]
    return math.prod(mesh.shape.get(axis, 1) for axis in ((axes,) if isinstance(axes, str) else axes or ()))
