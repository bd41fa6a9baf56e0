"""The largest batch that fits, for each remat policy."""

import dataclasses
from collections.abc import Callable
from typing import get_args

from jax.sharding import Mesh

from owl3_jax.config import Config, Remat
from owl3_jax.sharding import rows_divisor

from .compiled import OutOfMemory, compile_for
from .programs import train
from .report import Report, make_report
from .topology import Topology


def search(config: Config, topology: Topology, mesh: Mesh, say: Callable[[str], None]) -> list[Report]:
    """For each policy the report of the largest batch that fits, `rows` 0 where none does.

    Rows are the smallest number that the mesh can split, times a power of two. The search starts from the config's and goes
    up or down until the next step does not fit, or does: two or three compilations a policy.
    """
    return [_largest(config, remat, topology, mesh, say) for remat in get_args(Remat)]


def _largest(config: Config, remat: Remat, topology: Topology, mesh: Mesh, say: Callable[[str], None]) -> Report:
    least = rows_divisor(mesh) * config.train.microbatches
    attempt = lambda power: _attempt(config, remat, least << power, topology, mesh, say)
    power = max(0, (config.data.rows // least).bit_length() - 1)
    best = attempt(power)
    while best and (more := attempt(power + 1)):
        best, power = more, power + 1
    while not best and power:
        power -= 1
        best = attempt(power)
    return {"remat": remat, **(best or {"rows": 0})}


def _attempt(
    config: Config, remat: Remat, rows: int, topology: Topology, mesh: Mesh, say: Callable[[str], None]
) -> Report | None:
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


def describe_search(found: list[Report]) -> str:
    """One line for each policy."""
    lines = ["remat      rows  a chip   peak GiB of   time, at least   rows/s, at most   MFU, at most"]
    for row in found:
        if not row["rows"]:
            lines.append(f"{row['remat']:<9}{'does not fit':>14}")
            continue
        seconds = row["step_seconds_at_least"]
        lines.append(
            f"{row['remat']:<9}{row['rows']:6}{row['rows_per_chip']:8.3g}{row['peak_gib']:9.2f} {row['available_gib']:6.2f}"
            f"{seconds:15.2f} s{row['rows'] / seconds:18.1f}{row['mfu_at_most']:15.0%}"
        )
    return "\n".join(lines)
