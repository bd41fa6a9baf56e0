"""Communication of a compiled module: bytes sent over the links of a device, by kind."""

import math
import re
from typing import NamedTuple

from owl3_jax.hlo import Instruction, Module, Run, arrays, runs

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


class Collective(NamedTuple):
    """All operations of one kind, of one device, in one execution of the module."""

    kind: str
    network: str  # ICI, within a slice, or DCN, between slices
    conditional: bool  # within branches: `times` is an upper bound
    times: int
    bytes: float  # that the device sends


def collectives(module: Module) -> list[Collective]:
    """Sums by kind, the largest first. Loops count by their trips (`hlo.runs`)."""
    totals: dict[tuple[str, str, bool], tuple[int, float]] = {}
    for run in runs(module):
        lines = module.computations.get(run.computation, ())
        # A chain of fusions that carries out one operation in the background names it again in each of them.
        goes_on = any("chain_id=" in line.rest for line in lines) and not any("AsyncCollectiveStart" in x.rest for x in lines)
        for line in () if goes_on else lines:
            if found := _read(run, line):
                key = (*found[:2], run.conditional)
                count, size = totals.get(key, (0, 0.0))
                totals[key] = count + run.times, size + run.times * found[2]
    return sorted((Collective(*key, *value) for key, value in totals.items()), key=lambda c: -c.bytes)


def _read(run: Run, line: Instruction) -> tuple[str, str, float] | None:
    """Kind, network and bytes of one execution, if the line is a collective operation."""
    if line.opcode == "send" and "xla_megascale_runtime" in line.rest:
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', line.rest)
        kind = transfer[1].lower().replace("_", "-") if transfer else "send"
        return kind, "DCN", float(max(array.bytes for array in arrays(line.shape)))
    kind = line.opcode.removesuffix("-start")
    if kind not in _KINDS:
        return None
    sizes = [array.bytes for array in arrays(line.shape)]
    result = max(sizes) if line.opcode.endswith("-start") else sum(sizes)
    n = group_size(line.rest)
    if kind == "all-reduce" and run.computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", "ICI", result * (n - 1) / n
    return kind, "ICI", _sent(kind, result, n)


def sent_bytes(line: Instruction, computation: str = "") -> float:
    """Bytes that a device sends in one execution of an instruction; 0 if it is no collective operation."""
    found = _read(Run(computation, 1, False), line)
    return found[2] if found else 0.0


def _sent(kind: str, result: int, n: int) -> float:
    """Bytes that each of n devices sends at least, for a result of `result` bytes on each."""
    if kind == "collective-permute":
        return float(result)
    if kind == "reduce-scatter":
        return float(result * (n - 1))
    return result * (2 if kind == "all-reduce" else 1) * (n - 1) / n


def group_size(rest: str) -> int:
    """Devices that take part in one operation, from its attributes, which XLA writes in three ways."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    if listed := re.search(r"replica_groups=\{\{([^}]*)\}", rest):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+(?:,\d+)*)\]<=", rest):
        return int(iota[1].split(",")[-1])
    return 2  # pairs of a permutation
