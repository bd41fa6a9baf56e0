"""The largest batch that fits, for each remat policy."""

import dataclasses
from collections.abc import Iterator
from typing import get_args

from jax.sharding import Mesh

from owl3_jax.config import Config, Remat
from owl3_jax.sharding import rows_divisor
from owl3_jax.tpu.compiled import OutOfMemory, Say, compile_for
from owl3_jax.tpu.programs import train
from owl3_jax.tpu.report import Report, make_report
from owl3_jax.tpu.topology import Topology


def search(config: Config, topology: Topology, mesh: Mesh, say: Say) -> Iterator[Report]:
    """For each policy the report of the largest batch that fits, with `rows` 0 where none does, as soon as it is found.

    Rows are a multiple of the smallest number that the mesh can split. The search starts from the config's, doubles them
    until they do not fit, or halves them until they do, and then bisects.
    """
    for remat in get_args(Remat):
        yield _largest(config, remat, topology, mesh, say)


def _largest(config: Config, remat: Remat, topology: Topology, mesh: Mesh, say: Say) -> Report:
    least = rows_divisor(mesh) * config.train.microbatches
    best: Report | None = None
    fits, too_many = 0, 0  # multiples of `least`; `too_many` is 0 until one did not fit
    while too_many == 0 or too_many - fits > 1:
        multiple = (fits + too_many) // 2 if too_many else 2 * fits or max(1, config.data.rows // least)
        report = _attempt(config, remat, multiple * least, topology, mesh, say)
        best, fits, too_many = (report, multiple, too_many) if report else (best, fits, multiple)
    return {"remat": remat, **(best or {"rows": 0})}


def _attempt(config: Config, remat: Remat, rows: int, topology: Topology, mesh: Mesh, say: Say) -> Report | None:
    """The report of a batch, None if it does not fit."""
    compute = dataclasses.replace(config.compute, remat=remat)
    config = dataclasses.replace(config, compute=compute, data=dataclasses.replace(config.data, rows=rows))
    say(f"remat {remat}, {rows} rows")
    try:
        report = make_report(compile_for(train(config, mesh), topology, say), topology, mesh)
    except OutOfMemory as error:
        say(f"does not fit: {error}")
        return None
    return {"rows": rows, "rows_per_chip": rows / topology.chips, **report}


HEADING = "remat      rows  a chip   peak GiB of   time, at least   rows/s, at most   MFU, at most"


def describe_search(row: Report) -> str:
    """A line below `HEADING`."""
    if not row["rows"]:
        return f"{row['remat']:<9}{'does not fit':>14}"
    seconds = row["step_seconds_at_least"]
    return (
        f"{row['remat']:<9}{row['rows']:6}{row['rows_per_chip']:8.3g}{row['peak_gib']:9.2f} {row['available_gib']:6.2f}"
        f"{seconds:15.2f} s{row['rows'] / seconds:18.1f}{row['mfu_at_most']:15.0%}"
    )
