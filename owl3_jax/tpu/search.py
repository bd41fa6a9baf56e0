"""The largest batch that fits, for each remat policy; the fastest way to divide a batch, by the compiler's clock."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import get_args

from jax.sharding import Mesh

from owl3_jax import sharding
from owl3_jax.config import Config, ConfigError, MeshConfig, Remat
from owl3_jax.tpu.compiled import OutOfMemory, Say, compile_for
from owl3_jax.tpu.programs import train
from owl3_jax.tpu.report import Report, make_report
from owl3_jax.tpu.topology import Topology

# By `fastest`. `none` keeps more than `dots` for nothing; `offload` waits for the host.
_TRIED: tuple[Remat, ...] = ("dots", "minimal", "full")


def search(config: Config, topology: Topology, mesh: Mesh, say: Say) -> Iterator[Report]:
    """For each policy the report of the largest batch that fits, with `rows` 0 where none does, as soon as it is found.

    Rows are a multiple of the smallest number that the mesh can split. The search starts from the config's, doubles them
    until they do not fit, or halves them until they do, and then bisects.
    """
    for remat in get_args(Remat):
        yield _largest(config, remat, topology, mesh, say)


def _largest(config: Config, remat: Remat, topology: Topology, mesh: Mesh, say: Say) -> Report:
    least = sharding.rows_divisor(mesh) * config.train.microbatches
    best: Report | None = None
    fits, too_many = 0, 0  # multiples of `least`; `too_many` is 0 until one did not fit
    while too_many == 0 or too_many - fits > 1:
        multiple = (fits + too_many) // 2 if too_many else 2 * fits or max(1, config.data.rows // least)
        data = dataclasses.replace(config.data, rows=multiple * least)
        report = _attempt(_with_remat(dataclasses.replace(config, data=data), remat), topology, mesh, say)
        best, fits, too_many = (report, multiple, too_many) if report else (best, fits, multiple)
    return {"remat": remat, **(best or {"rows": 0})}


def fastest(config: Config, topology: Topology, say: Say) -> Iterator[Report]:
    """For each mesh and remat policy the report of the fewest microbatches that fit, as soon as it is found.

    The batch is the config's; `microbatches` is 0 where none fit. Meshes have the config's `tensor` and `context`, and all
    splits of the other devices between `data` and `fsdp`.
    """
    for shape, remat in itertools.product(meshes(config, topology), _TRIED):
        mesh = sharding.make_mesh(shape, topology.devices)
        yield _with_fewest_microbatches(_with_remat(dataclasses.replace(config, mesh=shape), remat), topology, mesh, say)


def meshes(config: Config, topology: Topology) -> list[MeshConfig]:
    """All splits of a slice's devices between `data` and `fsdp`, the latter a power of two that divides the model's width."""
    if min(config.mesh.tensor, config.mesh.context) < 1:
        raise ConfigError("--fastest splits what mesh.tensor and mesh.context leave: set them to numbers of devices")
    n = len(topology.devices) // (topology.slices * config.mesh.tensor * config.mesh.context)
    sizes = [2**power for power in range(n.bit_length()) if n % 2**power == 0 and config.model.hidden_size % 2**power == 0]
    return [dataclasses.replace(config.mesh, data=n // size, fsdp=size) for size in reversed(sizes)]


def _with_fewest_microbatches(config: Config, topology: Topology, mesh: Mesh, say: Say) -> Report:
    rows_each = config.data.rows // sharding.rows_divisor(mesh)
    halved = [2**power for power in range(rows_each.bit_length()) if rows_each % 2**power == 0]
    for parts in halved or [1]:  # of too few rows the first attempt says so
        divided = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=parts))
        if report := _attempt(divided, topology, mesh, say):
            return report
    return {"mesh": dict(mesh.shape), "remat": config.compute.remat, "microbatches": 0}


def _with_remat(config: Config, remat: Remat) -> Config:
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=remat))


def _attempt(config: Config, topology: Topology, mesh: Mesh, say: Say) -> Report | None:
    """The report of a step, None if it does not fit."""
    rows, parts = config.data.rows, config.train.microbatches
    say(f"{sharding.describe_mesh(mesh)}, remat {config.compute.remat}, {rows} rows in {parts} parts")
    try:
        report = make_report(compile_for(train(config, mesh), topology, say), topology, mesh)
    except OutOfMemory as error:
        say(f"does not fit: {error}")
        return None
    return {"rows": rows, "rows_per_chip": rows / topology.chips, **report}


HEADING = "remat      rows  a chip   peak GiB of   time, at least   by the clock   rows/s, by the clock   MFU, by the clock"


def describe_search(row: Report) -> str:
    """A line below `HEADING`."""
    if not row["rows"]:
        return f"{row['remat']:<9}{'does not fit':>14}"
    seconds = row["clock"]["seconds"]
    return (
        f"{row['remat']:<9}{row['rows']:6}{row['rows_per_chip']:8.3g}{row['peak_gib']:9.2f} {row['available_gib']:6.2f}"
        f"{row['step_seconds_at_least']:15.2f} s{seconds:13.2f} s{row['rows'] / seconds:23.1f}{row['clock']['mfu']:20.1%}"
    )


FASTEST_HEADING = "data  fsdp  remat    microbatches   peak GiB of   by the clock     MFU"


def describe_fastest(row: Report) -> str:
    """A line below `FASTEST_HEADING`."""
    way = f"{row['mesh']['data']:4}{row['mesh']['fsdp']:6}  {row['remat']:<9}"
    if not row["microbatches"]:
        return f"{way}{'do not fit':>12}"
    clock = row["clock"]
    memory = f"{row['peak_gib']:9.2f} {row['available_gib']:6.2f}"
    return f"{way}{row['microbatches']:12}{memory}{clock['seconds']:13.2f} s{clock['mfu']:8.1%}"


def describe_choice(rows: Sequence[Report]) -> str:
    """The settings of the fastest way."""
    fitting = [row for row in rows if row["microbatches"]]
    if not fitting:
        return "No way of them fits: use more chips, or fewer rows"
    best = min(fitting, key=lambda row: float(row["clock"]["seconds"]))
    data = best["mesh"]["data"] // best["slices"]  # the setting is that of a slice
    mesh = f"--config.mesh.data={data} --config.mesh.fsdp={best['mesh']['fsdp']}"
    return f"fastest: {mesh} --config.compute.remat={best['remat']} --config.train.microbatches={best['microbatches']}"
