"""What a compiled program needs of a chip, as numbers and as text."""

import math
import re
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from owl3_jax.hlo import arrays
from owl3_jax.sharding import device_bytes
from owl3_jax.tpu.clock import Item, by_part
from owl3_jax.tpu.compiled import GIB, Compiled, OutOfMemory
from owl3_jax.tpu.images import Facts, Gathered
from owl3_jax.tpu.programs import Program
from owl3_jax.tpu.topology import Topology
from owl3_jax.training.profile import BACKWARD, FORWARD, OTHER, RECOMPUTED

_DEAREST = 20  # instructions that are listed
_FOLDERS = re.compile(r"^.*/(?:site-packages/|(?=owl3_jax/))")  # before the name of a package

# Any: the values of a JSON tree. GiB, operations and seconds are those of one chip.
Report = dict[str, Any]


def make_report(compiled: Compiled, topology: Topology, mesh: Mesh) -> Report:
    """All numbers of a program that fits."""
    program, chip, n = compiled.program, topology.chip, topology.chip.devices
    gib = lambda size: n * size / GIB
    moved = n * compiled.moved
    seconds = {
        "compute": program.computed / topology.chips / chip.flops,
        "HBM": moved / chip.hbm,
        "ICI": n * _sent(compiled, "ICI") / chip.ici,
        "DCN": n * _sent(compiled, "DCN") / chip.dcn,
    }
    held = {name: gib(device_bytes(tree)) for name, tree in program.held.items()}
    return {
        **_heading(program, topology, mesh),
        "fits": True,
        "compile_seconds": compiled.seconds._asdict(),
        "available_gib": gib(compiled.available),
        "peak_gib": gib(compiled.peak),
        "memory_gib": {**held, "temporary": gib(compiled.temporary), "code": gib(compiled.code), "host": gib(compiled.host)},
        "collectives": [{**c._asdict(), "bytes": n * c.bytes} for c in compiled.collectives],
        "open_loops": compiled.open_loops,
        "images": compiled.images and _images(compiled.images),
        "model_flops": program.flops / topology.chips,
        "computed_flops": program.computed / topology.chips,
        "hbm_bytes": moved,
        "flops_per_byte": program.computed / topology.chips / moved,
        "seconds_at_least": seconds,
        "step_seconds_at_least": max(seconds.values()),
        "mfu_at_most": program.flops / topology.chips / chip.flops / max(seconds.values()),
        "clock": _clock(compiled, program.flops / topology.chips / chip.flops),
    }


def _clock(compiled: Compiled, least: float) -> Report:
    """Seconds by the compiler's clock; `least` are those that the model's operations take at the chip's peak."""
    clock = compiled.clock
    kinds = clock.by_kind()
    return {
        "seconds": clock.seconds,
        "mfu": least / clock.seconds if clock.seconds else 0.0,
        "parts": by_part(clock, lambda instruction: compiled.parts.get(instruction.name, OTHER)),
        "kinds": kinds,
        "kernels": kinds["kernels"],
        "exposed_collectives": kinds["collectives"],
        "unknown_branches": clock.unknown,
        "dearest": [_dear(compiled, item) for item in clock.dearest(_DEAREST)],
    }


def _dear(compiled: Compiled, item: Item) -> Report:
    instruction = item.instruction
    return {
        "seconds": item.seconds,
        "times": item.times,
        "kind": item.kind,
        "part": "/".join(filter(None, compiled.parts.get(instruction.name, OTHER))),
        "instruction": instruction.name,
        "shape": ", ".join(map(str, arrays(instruction.shape))),
        "source": _FOLDERS.sub("", compiled.sources.get(instruction.frame, "")),
    }


def _sent(compiled: Compiled, network: str) -> float:
    """Bytes that a device sends over ICI or DCN, without what branches may add."""
    return float(sum(c.bytes for c in compiled.collectives if c.network == network and not c.conditional))


def _images(facts: Facts) -> Report:
    """Arrays as text, the gathered ones with their bytes on a device."""
    return {
        "scores": facts.scores and str(facts.scores),
        "largest_gathered": _gathered(facts.largest),
        "images_gathered": _gathered(facts.of_images),
        "features_bytes": facts.features.bytes,
    }


def _gathered(found: Gathered | None) -> Report | None:
    return {"array": str(found.array), "bytes": found.array.bytes, "name": found.name} if found else None


def make_failure(error: OutOfMemory, program: Program, topology: Topology, mesh: Mesh) -> Report:
    """What is known of a program that does not fit."""
    gib = lambda size: topology.chip.devices * size / GIB
    held = {name: gib(device_bytes(tree)) for name, tree in program.held.items()}
    return {
        **_heading(program, topology, mesh),
        "fits": False,
        "available_gib": gib(error.available),
        "peak_gib": gib(error.needed),
        "memory_gib": held,
        "model_flops": program.flops / topology.chips,
    }


def _heading(program: Program, topology: Topology, mesh: Mesh) -> Report:
    return {
        "program": program.name,
        "what": program.what,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": dict(mesh.shape),
        "remat": program.remat,
        "microbatches": program.microbatches,
    }


def describe(report: Report) -> str:
    """The report as text."""
    axes = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    lines = [
        f"{report['program']}: {report['what']}",
        f"{slices}{report['topology']}, {report['chips']} chips, mesh {axes}; per chip:",
        "",
        *(f"{name:<20}{size:9.2f} GiB" for name, size in report["memory_gib"].items() if size >= 0.005),
        f"{'peak':<20}{report['peak_gib']:9.2f} GiB of {report['available_gib']:.2f}, {_verdict(report)}",
    ]
    return "\n".join([*lines, *(_speed(report) if report["fits"] else [])])


def _verdict(report: Report) -> str:
    missing = report["peak_gib"] - report["available_gib"]
    return "fits" if report["fits"] else f"does not fit: {missing:.2f} GiB too much"


def _speed(report: Report) -> list[str]:
    seconds, bound = report["seconds_at_least"], report["step_seconds_at_least"]
    shares = [f"{name} {_duration(value)} ({value / bound:.0%})" for name, value in seconds.items() if value]
    return [
        "",
        *_collective_lines(report["collectives"]),
        *(_image_lines(report["images"]) if report["images"] else []),
        *(["loops of unknown trip count, counted as one trip: " + str(report["open_loops"])] * bool(report["open_loops"])),
        "",
        f"model                {_number(report['model_flops'])}FLOP by formula",
        f"computed             {_number(report['computed_flops'])}FLOP, including what remat repeats",
        f"HBM, at least        {_number(report['hbm_bytes'])}B; {report['flops_per_byte']:.0f} operations a byte",
        f"time, at least       {_duration(bound)}: {', '.join(shares)}",
        f"MFU, at most         {report['mfu_at_most']:.0%}",
        *_clock_lines(report["clock"]),
    ]


def _clock_lines(clock: Report) -> list[str]:
    seconds = clock["seconds"]
    share = lambda value: f"{_duration(value):>10} {value / seconds:6.1%}"
    directions = (FORWARD, BACKWARD, RECOMPUTED)
    unknown = f"  branches of unknown frequency, of which the longest counts: {clock['unknown_branches']}"
    return [
        "",
        f"time, by the compiler's clock {_duration(seconds)}, MFU {clock['mfu']:.1%}",
        *(f"  {kind:<38}{share(value)}" for kind, value in clock["kinds"].items() if value),
        *([unknown] if clock["unknown_branches"] else []),
        "",
        f"  {'part':<38}{'':17} " + "".join(f"{name:>12}" for name in directions),
        *(
            f"  {name:<38}{share(sum(times.values()))} "
            + "".join(f"{_duration(times[way]) if times.get(way) else '':>12}" for way in directions)
            for name, times in clock["parts"].items()
        ),
        "",
        *(f"  {share(item['seconds'])}   {item['kind']:<14}{item['part']:<46}  {item['source']}" for item in clock["dearest"]),
    ]


def _collective_lines(collectives: Sequence[Report]) -> list[str]:
    return [
        f"{c['kind']:<20}{c['times']:6} times, {_number(c['bytes']):>7}B sent over {c['network']}"
        + (", in branches: at most" if c["conditional"] else "")
        for c in collectives
    ]


def _image_lines(images: Report) -> list[str]:
    return [
        "",
        f"scores of images     {images['scores'] or 'none'}",
        f"largest gathered     {_gathered_text(images['largest_gathered'])}",
        f"images gathered      {_gathered_text(images['images_gathered'])}; "
        f"features of all are {_number(images['features_bytes'])}B",
    ]


def _gathered_text(found: Report | None) -> str:
    return f"{_number(found['bytes'])}B, {found['array']} {found['name']}".rstrip() if found else "none"


def _number(value: int | float) -> str:
    """Three digits and an SI prefix, as in `12.3 T`."""
    power = max(0, min(5, int(math.log10(value) // 3))) if value else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
