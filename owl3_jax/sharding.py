"""The one file that knows the mesh: axes, THE rules table, and what becomes of every parameter.

Models name the dims of parameters and activations by logical axis names. `RULES` says over which mesh
axis each of them is split; a mesh axis of size 1 splits nothing, so data parallelism, FSDP, tensor
parallelism and their mixtures are only different `MeshConfig`s.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor", "context")

# Logical axis name -> mesh axis or axes (None: on every device whole).
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # dims of activations
    ("batch", ("data", "fsdp")),
    ("vision_batch", ("data", "fsdp")),  # B * I: the vision encoder sees no rows
    ("text", None),
    ("image", "context"),
    ("image_token", None),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_kv_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
    # dims of parameters
    ("embed", "fsdp"),
    ("projector_hidden", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("vision_embed", "fsdp"),
    ("vision_heads", "tensor"),
    ("vision_mlp", "tensor"),
    ("head_dim", None),
    ("gate_out", None),
    ("key_value", None),
    ("norm", None),
    ("patch_row", None),
    ("patch_column", None),
    ("channel", None),
    ("layers", None),
    ("hyper_layers", None),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), with all four axes; -1 takes what the others leave.

    Raises ConfigError when the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(dataclasses.astuple(config))
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {math.prod(sizes)} devices, there are {len(devices)}"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Functions traced inside split their activations over `mesh` by the rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def rows_divisor(mesh: Mesh) -> int:
    """The number of rows of a batch must be a multiple of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`; for every array of a batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This host's rows as a batch of global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(boxed_params: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each parameter of the (abstract) tree that `Owl3.init` returns, names attached.

    A mesh axis that does not divide its dim is left out: that dim stays whole.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed_params), RULES)
    shapes = nn.unbox(boxed_params)
    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(
        lambda spec, leaf: NamedSharding(mesh, _without_uneven_axes(spec, leaf.shape, mesh)), specs, shapes, is_leaf=is_spec
    )


def _without_uneven_axes(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = lambda axes: math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
    return PartitionSpec(*(axes if size % parts(axes) == 0 else None for axes, size in zip(spec, shape, strict=True)))


def describe(boxed_params: Any, mesh: Mesh) -> list[str]:
    """One line per parameter: path, shape, logical axis names, and how it lies on the mesh."""
    flat = lambda tree: flatten_dict(tree, sep="/")
    shapes, names = flat(nn.unbox(boxed_params)), flat(nn.get_partition_spec(boxed_params))
    specs = flat(param_shardings(boxed_params, mesh))
    rows = [
        (path, "x".join(map(str, leaf.shape)), " ".join(map(str, names[path])), str(specs[path].spec))
        for path, leaf in shapes.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
