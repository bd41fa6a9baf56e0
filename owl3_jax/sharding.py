"""The one file that knows the mesh: axes, THE rules table, and what becomes of every parameter.

Models name the dims of parameters and activations by logical axis names. `RULES` says over which mesh
axis each of them is split; a mesh axis of size 1 splits nothing, so data parallelism, FSDP, tensor
parallelism and their mixtures are only different `MeshConfig`s.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from owl3_jax.batch import Batch
from owl3_jax.config import ConfigError, MeshConfig
from owl3_jax.params import Params

AnyMesh = Mesh | AbstractMesh
Tree = TypeVar("Tree")
MeshAxes = str | tuple[str, ...] | None  # that split one dim

_DEFAULT_DEVICE = "jax_default_device"  # in jax.config, which is not typed
AXES = ("data", "fsdp", "tensor", "context")

# Logical axis name -> mesh axis or axes (None: not split).
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # dims of activations
    ("batch", ("data", "fsdp")),
    ("vision_batch", ("data", "fsdp", "context", "tensor")),  # images of all rows: see owl3_jax.nn.vision_batch
    ("lookup_row", "data"),  # rows of looked-up embeddings, whose columns are split over `fsdp` like the table's
    ("text", "context"),
    ("text_slot", None),  # of the text cache: written at a place that only the running program knows
    ("image", "context"),
    ("image_token", None),
    ("page", ("data", "fsdp", "context")),  # of pools that all rows share: see owl3_jax.attention.page_placement
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
    # Split only for storage: images are split over all axes, so a layer's weights are gathered when it runs.
    ("vision_embed", ("fsdp", "tensor")),
    ("vision_heads", None),
    ("vision_mlp", None),
    ("head_dim", None),
    ("gate_out", None),
    ("key_value", None),
    ("lora_rank", None),
    ("norm", None),
    ("patch_row", None),
    ("patch_column", None),
    ("channel", None),
    ("layers", None),
    ("hyper_layers", None),
)


MeshPreset = Literal[
    "data",
    "zero1",
    "fsdp",
    "fsdp16",
    "fsdp32",
    "tensor2",
    "tensor4",
    "context4",
    "multislice",
    "serve2",
    "serve4",
    "serve4-context",
]

MESH_PRESETS: dict[MeshPreset, MeshConfig] = {
    "data": MeshConfig(),
    "zero1": MeshConfig(shard_optimizer=True),
    "fsdp": MeshConfig(data=1, fsdp=-1),
    # Over many devices: wider parts of the weights, which are gathered over fewer devices. The fastest ones by docs/tpu.md.
    "fsdp16": MeshConfig(fsdp=16),
    "fsdp32": MeshConfig(fsdp=32),
    "tensor2": MeshConfig(data=1, fsdp=-1, tensor=2),
    "tensor4": MeshConfig(data=1, fsdp=-1, tensor=4),
    "context4": MeshConfig(data=1, fsdp=-1, context=4),
    "multislice": MeshConfig(data=1, fsdp=-1, slices=2),
    # For inference: nothing is gathered for each new token.
    "serve2": MeshConfig(tensor=2),
    "serve4": MeshConfig(tensor=4),
    "serve4-context": MeshConfig(data=1, tensor=4, context=-1),
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), with all four axes; -1 takes what the others leave.

    Each of several slices takes a contiguous part of the data axis. Devices without slices, such as a CPU's, are divided into
    slices of equal size, in their order.

    Raises ConfigError when the product of the axes is not the number of devices, or `config.slices` not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, types = _axis_sizes(config, len(devices)), (AxisType.Auto,) * len(AXES)
    there = {getattr(device, "slice_index", None) for device in devices} - {None}
    if there and len(there) != config.slices:
        raise ConfigError(
            f"mesh.slices is {config.slices}, but the devices form {len(there)} slices; set mesh.slices to {len(there)}"
        )
    within = (sizes[0] // config.slices, *sizes[1:])
    if len(there) > 1:
        grid = mesh_utils.create_hybrid_device_mesh(within, (config.slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """As `make_mesh`, for a number of devices that need not be present: for descriptions, not for computing."""
    return AbstractMesh(_axis_sizes(config, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _axis_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Devices along each axis over all slices."""
    known = math.prod(size for size in config.axes if size != -1) * config.slices
    data, *others = (max(1, devices // known) if size == -1 else size for size in config.axes)
    sizes = (data * config.slices, *others)
    if math.prod(sizes) != devices:
        slices = f" over {config.slices} slices" if config.slices > 1 else ""
        axes = dict(zip(AXES, sizes, strict=True))
        raise ConfigError(f"mesh {axes}{slices} needs {math.prod(sizes)} devices, there are {devices}")
    return sizes


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """Functions traced inside split their activations over `mesh` by the rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def tpu_kind() -> str | None:
    """`device_kind` of the TPUs that what is traced is for; else None."""
    device = _device()
    return str(device.device_kind) if device.platform == "tpu" else None


def computes_on(platform: Literal["cpu", "tpu"]) -> bool:
    """Whether what is traced is for devices of this platform."""
    return bool(_device().platform == platform)


def _device() -> jax.Device | AbstractDevice:
    """What is traced is for devices like this one: those of the mesh in force, which need not be present.

    Without a mesh, the device that JAX takes by default.
    """
    mesh, default = jax.sharding.get_abstract_mesh(), getattr(jax.config, _DEFAULT_DEVICE)
    own = default if isinstance(default, jax.Device) else jax.devices(default)[0]
    return (None if mesh.empty else mesh.abstract_device) or own


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
    for axis in axis_names(axes):
        if size % (mesh.shape[axis] * math.prod(mesh.shape[other] for other in kept)):
            break
        kept += [axis] if mesh.shape[axis] > 1 else []
    return tuple(kept) if len(kept) > 1 else kept[0] if kept else None


def devices_along(name: str, mesh: AnyMesh | None = None) -> int:
    """Devices that a dim of this logical name is split over: by `mesh` and `RULES`, or by the mesh and the rules in force."""
    shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    axes = (nn.logical_to_mesh_axes((name,), None if mesh is None else RULES) or (None,))[0]
    return math.prod(shape.get(axis, 1) for axis in axis_names(axes))


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """The mesh axes that split a dim, as a tuple; () if none does."""
    return (axes,) if isinstance(axes, str) else axes or ()


def constrain(x: Shaped[Array, "..."], names: tuple[str | None, ...]) -> Shaped[Array, "..."]:
    """Splits an activation by the logical names of its dims; does nothing where no mesh and rules are set.

    A mesh axis that does not divide its dim (the one text position of a decoding step, say) is left out.

    Raises ValueError for a name that no rule has.
    """
    spec = partition_spec(names, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def rows_divisor(mesh: Mesh) -> int:
    """The number of rows of a batch must be a multiple of this."""
    return devices_along("batch", mesh)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`; for every array of a batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def rows_of_process(processes: Int[np.ndarray, "data fsdp tensor context"], process: int, rows: int) -> list[int]:
    """The rows of a batch that a process makes, by their numbers, which rise.

    Processes that `tensor` or `context` extends over hold the same rows, and each makes them.

    Args:
        processes: the process that each device of a mesh belongs to.
        process: this one.
        rows: of the batch; a multiple of `data` times `fsdp`.

    Raises:
        ConfigError: rows are not such a multiple; or processes hold some of their rows together, but not all, or not equally
            many.
    """
    holders = processes.reshape(processes.shape[0] * processes.shape[1], -1)  # of each block of rows
    blocks = {each: frozenset(np.flatnonzero((holders == each).any(axis=1)).tolist()) for each in np.unique(processes)}
    parts = set(blocks.values())
    if sum(map(len, parts)) != len(holders) or len({len(part) for part in parts}) > 1:
        raise ConfigError(
            f"the devices of a process hold rows of a batch that others hold in part ({blocks}): choose mesh.tensor and "
            "mesh.context so that they divide the devices of a host, or are a multiple of them"
        )
    if rows % len(holders):
        raise ConfigError(f"data.rows {rows} is not a multiple of the mesh's data x fsdp axes ({len(holders)})")
    size = rows // len(holders)
    return [block * size + row for block in sorted(blocks[process]) for row in range(size)]


def processes_of(mesh: Mesh) -> Int[np.ndarray, "data fsdp tensor context"]:
    """The process that each device belongs to."""
    return np.array([device.process_index for device in mesh.devices.flat]).reshape(mesh.devices.shape)


def own_rows(mesh: Mesh, rows: int) -> list[int]:
    """`rows_of_process` for this process."""
    return rows_of_process(processes_of(mesh), jax.process_index(), rows)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """The rows of `own_rows` as a batch of global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_own_rows(array: Shaped[Array, "rows ..."]) -> Shaped[np.ndarray, "own ..."]:
    """The rows of `own_rows` of a global array."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}  # copies are alike
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(boxed_params: Params, mesh: AnyMesh) -> Params:
    """A NamedSharding for each parameter of the (abstract) tree that `Owl3.init` returns, names attached.

    A mesh axis that does not divide its dim is left out.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed_params), RULES)
    shapes = nn.unbox(boxed_params)
    is_spec = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(
        lambda spec, leaf: NamedSharding(mesh, without_uneven_axes(spec, leaf.shape, mesh)), specs, shapes, is_leaf=is_spec
    )


def optimizer_shardings(params: Tree, shapes: object, mesh: AnyMesh) -> Tree:
    """ZeRO-1: how to split optimizer state over the devices that hold copies of the same part of a parameter.

    Args:
        params: a NamedSharding for each parameter.
        shapes: the parameters, or their shapes.

    Returns:
        As `params`, each with the mesh axes that it does not use on its largest dim that they divide. The first dim of a matrix
        is not split: scans run over layers, and gradients of an embedding split by words would need the tokens of all devices.
    """
    split: Tree = jax.tree.map(lambda s, leaf: NamedSharding(mesh, _with_free_axes(s.spec, leaf.shape, mesh)), params, shapes)
    return split


def _with_free_axes(spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    dims = [axis_names(axes) for axes in (*spec, *[None] * (len(shape) - len(spec)))]
    parts = lambda axes: math.prod(mesh.shape[axis] for axis in axes)
    for axis in AXES:
        if mesh.shape[axis] == 1 or any(axis in axes for axes in dims):
            continue
        allowed = range(1, len(shape)) if len(shape) > 1 else range(len(shape))
        divided = [dim for dim in allowed if shape[dim] % parts((*dims[dim], axis)) == 0]
        if divided:
            dims[max(divided, key=lambda dim: shape[dim])] += (axis,)
    return without_uneven_axes(PartitionSpec(*dims), shape, mesh)


def describe(boxed_params: Params, mesh: AnyMesh, shardings: Params | None = None) -> list[str]:
    """One line per parameter: path, shape, logical axis names, and how the mesh splits it.

    `shardings` are those of `param_shardings` if None.
    """
    flat = lambda tree: flatten_dict(tree, sep="/")
    shapes, names = flat(nn.unbox(boxed_params)), flat(nn.get_partition_spec(boxed_params))
    specs = flat(shardings or param_shardings(boxed_params, mesh))
    rows = [
        (path, "x".join(map(str, leaf.shape)), " ".join(map(str, names[path])), str(specs[path].spec))
        for path, leaf in shapes.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


def describe_mesh(mesh: AnyMesh) -> str:
    """The axes and their sizes, such as `data 2 x fsdp 4 x tensor 1 x context 1`."""
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def device_bytes(tree: object) -> int:
    """Bytes of one device's part of abstract arrays; each device has the whole of an array without a sharding."""
    total = 0
    for x in jax.tree.leaves(tree):
        sharding = getattr(x, "sharding", None)
        shape = sharding.shard_shape(x.shape) if sharding else x.shape
        total += x.dtype.itemsize * math.prod(shape)
    return total
