"""Compiles a run for TPUs that you do not have, and reports what it needs of each chip.

    owl3 compile --config configs/released.py:1b-241014 --topology v5e:4x4
    owl3 compile --config configs/stage3.py:7b-240728 --topology v5e:16x16 --num-slices 2 --json report.json
    owl3 compile --config configs/stage3.py:7b-240728 --topology v5e:16x16 --search
    owl3 compile --config configs/stage3.py:7b-240728 --topology v5e:16x16 --fastest
    owl3 compile --config configs/released.py:7b-240728 --topology v5p:1x1x1 --program prefill --images 4096
    owl3 compile --config configs/released.py:7b-240728 --config.mesh.fsdp=1 --config.mesh.tensor=4 --config.mesh.context=2 \
        --topology v5e:2x4 --program serve-step --requests 64 --images 100

The compiler is the one used on a TPU (libtpu, `pip install 'owl3_jax[tpu]'`), the program is the one that `owl3 train` and the
engine run, and fields of the config are overridden as for `owl3 train`. Exits with 3 when the program does not fit. docs/tpu.md
explains the lines of the report.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from owl3_jax import sharding
from owl3_jax.config import Config, ConfigError
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.host import command_line
from owl3_jax.host.files import write_text
from owl3_jax.tpu.compiled import OutOfMemory, compile_for
from owl3_jax.tpu.programs import Inference, Name, Program, Prompt, serve_step, train
from owl3_jax.tpu.report import Report, describe, make_failure, make_report
from owl3_jax.tpu.search import FASTEST_HEADING, HEADING, describe_choice, describe_fastest, describe_search, fastest, search
from owl3_jax.tpu.topology import Topology, TopologyError, get_topology
from owl3_jax.training import compiled_step
from owl3_jax.training.start import resolve_start

DOES_NOT_FIT = 3


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compiles a run for TPUs that you do not have, and reports what it needs of each chip."""

    topology: str  # topology of one slice, e.g. v5e:4x4
    num_slices: int | None = None  # slices, joined by the data-centre network; config.mesh.slices by default
    program: Name = "train"  # the train step, one of the programs that answer a prompt, or a step of a server
    images: int = 400  # images in the prompt
    requests: int = 64  # answered together in a step of a server
    search: bool = False  # find the largest batch for each remat policy
    fastest: bool = False  # find the mesh, remat policy and microbatches that take the config's batch fastest
    save: Path | None = None  # write the compiled train step, for `owl3 train --compiled`
    json: Path | None = None  # write the report


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles what the command line asks for."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 compile")
    slices = flags.num_slices or config.mesh.slices
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))
    try:
        config, topology = resolve_start(config), get_topology(flags.topology, slices)
        mesh = sharding.make_mesh(config.mesh, topology.devices)
        searched = flags.search or flags.fastest
        report, fits = _search(config, flags, topology, mesh) if searched else _compile(config, flags, topology, mesh)
    except (TopologyError, ConfigError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
    if flags.json:
        write_text(flags.json, json.dumps(report, indent=2) + "\n")
    if not fits:
        sys.exit(DOES_NOT_FIT)


def _compile(config: Config, flags: Flags, topology: Topology, mesh: Mesh) -> tuple[Report, bool]:
    program = _program(config, flags, mesh)
    try:
        compiled = compile_for(program, topology, _say)
    except OutOfMemory as error:
        report = make_failure(error, program, topology, mesh)
    else:
        report = make_report(compiled, topology, mesh)
        if flags.save:
            compiled_step.save(flags.save, config, mesh, compiled.executable)
    print(describe(report))
    return report, report["fits"]


def _program(config: Config, flags: Flags, mesh: Mesh) -> Program:
    if flags.program == "train":
        return train(config, mesh)
    if flags.save:
        raise ConfigError("--save is for the train step: leave out --program")
    if flags.program == "serve-step":
        return serve_step(config, mesh, Prompt.with_images(flags.images), flags.requests)
    return Inference(config, mesh, Prompt.with_images(flags.images)).program(flags.program)


def _search(config: Config, flags: Flags, topology: Topology, mesh: Mesh) -> tuple[Report, bool]:
    if flags.save or flags.program != "train":
        raise ConfigError("--search and --fastest try many train steps: leave out --save and --program")
    if flags.search and flags.fastest:
        raise ConfigError("--search changes the batch and --fastest keeps it: leave out one of them")
    if flags.search:
        found = _print_rows(HEADING, search(config, topology, mesh, _say), describe_search)
        return {"search": found}, any(row["rows"] for row in found)
    found = _print_rows(FASTEST_HEADING, fastest(config, topology, _say), describe_fastest)
    print(describe_choice(found))
    return {"fastest": found}, any(row["microbatches"] for row in found)


def _print_rows(heading: str, rows: Iterable[Report], describe_row: Callable[[Report], str]) -> list[Report]:
    """Each row as soon as it is found; and all of them, as they are."""
    print(heading, flush=True)
    found = []
    for row in rows:
        print(describe_row(row), flush=True)
        found.append(row)
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
