"""Compiling a program, and what the compiler says about it."""

import functools
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from owl3_jax.hlo import Instruction, Module, open_loops, parse, source_lines
from owl3_jax.sharding import device_bytes
from owl3_jax.tpu.clock import Clock, read_clock
from owl3_jax.tpu.collectives import Collective, collectives
from owl3_jax.tpu.images import Facts, image_facts
from owl3_jax.tpu.programs import Program
from owl3_jax.tpu.topology import Topology
from owl3_jax.tpu.traffic import bytes_made
from owl3_jax.training.profile import Part, parts_of

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_OF_LAYERS = re.compile(r"/self_attn/hyper_attention/cond$")


Say = Callable[[str], None]  # takes a line that says what is being done


def _say_nothing(line: str) -> None:
    """The default `Say`."""


class OutOfMemory(RuntimeError):
    """A program that needs more memory than a device has; both in bytes of one device."""

    def __init__(self, needed: float, available: float) -> None:
        super().__init__(f"needs {needed / GIB:.2f} GiB on each device, which has {available / GIB:.2f}")
        self.needed, self.available = needed, available


class Dump(NamedTuple):
    """What libtpu writes of a module: jaxlib 0.10.2 cannot read the modules of v6e and tpu7x."""

    optimized: Module
    scheduled: Module  # after code generation, with the cycles that the compiler expects
    sources: Mapping[int, str]


class Seconds(NamedTuple):
    """How long compiling took."""

    lowering: float  # tracing included
    compiling: float
    cpu: float  # of both, on all cores: unaffected by other work on this machine


class Compiled(NamedTuple):
    """A program for the devices of a topology; bytes are those of one device."""

    program: Program
    executable: jax.stages.Compiled
    seconds: Seconds
    available: float
    peak: float  # the most that the program holds at once, and `program.held` that it does not take as arguments
    temporary: int
    code: int
    host: int  # in the host's memory
    moved: int  # from and to HBM, at least
    collectives: list[Collective]
    open_loops: int  # `hlo.open_loops`
    images: Facts | None  # of a train step
    clock: Clock  # of a device
    parts: Mapping[str, Part]  # of the model, by the name of the clock's instructions
    sources: Mapping[int, str]  # lines of the program (`hlo.source_lines`)


def compile_for(program: Program, topology: Topology, say: Say = _say_nothing) -> Compiled:
    """Compiles ahead of time. Raises OutOfMemory when it does not fit."""
    began, cpu = time.monotonic(), time.process_time()
    lowered = program.lower()
    lower_seconds = time.monotonic() - began
    say(f"{program.name}: lowered in {lower_seconds:.0f} s, compiling for {topology.describe()} ...")
    try:
        executable, dump = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if needed := _find(rf"\({_SIZE}\) exceeds available HBM", str(error)):
            raise OutOfMemory(needed, available_bytes(topology)) from error
        raise
    seconds = Seconds(lower_seconds, time.monotonic() - began - lower_seconds, time.process_time() - cpu)
    say(f"compiled in {seconds.compiling:.0f} s")
    compiled = _examine(program, executable, dump, seconds, topology)
    if compiled.peak > compiled.available:
        raise OutOfMemory(compiled.peak, compiled.available)
    return compiled


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Dump]:
    with tempfile.TemporaryDirectory() as directory:
        executable = lowered.compile(compiler_options={"xla_dump_to": directory, "xla_dump_hlo_as_text": True})
        optimized = _largest(Path(directory), "*.after_optimizations.txt")
        scheduled = _largest(Path(directory), "*.after_codegen.txt")
        return executable, Dump(parse(optimized), parse(scheduled), source_lines(scheduled))


def _largest(directory: Path, pattern: str) -> str:
    files = list(directory.glob(pattern))
    if not files:
        raise RuntimeError("the compiler did not dump its module; install the libtpu of constraints.txt")
    return max(files, key=lambda file: file.stat().st_size).read_text()


def _examine(program: Program, executable: jax.stages.Compiled, dump: Dump, seconds: Seconds, topology: Topology) -> Compiled:
    module = dump.optimized
    memory = executable.memory_analysis()
    if memory is None:
        raise RuntimeError("the compiler gives no memory analysis; install the libtpu of constraints.txt")
    arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
    rewritten = results - (0 if program.rewrites else memory.alias_size_in_bytes)
    not_passed = max(0, sum(device_bytes(tree) for tree in program.held.values()) - arguments)
    return Compiled(
        program,
        executable,
        seconds,
        available_bytes(topology),
        float(memory.peak_memory_in_bytes + not_passed),
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes,
        _moved(module, read=arguments - device_bytes(program.looked_up), written=rewritten),
        collectives(module),
        open_loops(module),
        image_facts(module, program.rows) if program.rows else None,
        read_clock(dump.scheduled, topology.chip.of_one_device, functools.partial(branch_shares, program.hyper_share)),
        parts_of(dump.scheduled),
        dump.sources,
    )


def branch_shares(hyper_share: float, conditional: Instruction) -> Sequence[float] | None:
    """How often each branch of a conditional is taken: those of the decoder's layers are by their kind (`models.qwen2`)."""
    if not _OF_LAYERS.search(conditional.op_name):
        return None
    without_first = "branch_computations=" in conditional.rest  # by a number; by a truth value the true one comes first
    return [1 - hyper_share, hyper_share] if without_first else [hyper_share, 1 - hyper_share]


def _moved(module: Module, *, read: int, written: int) -> int:
    """Bytes of arguments that are read and results that are written; intermediate arrays are both."""
    return read + max(written, 2 * bytes_made(module) - written)


def available_bytes(topology: Topology) -> float:
    """Memory of one device that programs can use, from the compiler's message when it refuses one that needs 8 TiB."""
    return _limit(topology.devices[0])


@functools.cache
def _limit(device: jax.Device) -> float:
    huge = jax.ShapeDtypeStruct((2**23, 2**20), jnp.uint8, sharding=jax.sharding.SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if available := _find(rf"exceeds available HBM \({_SIZE}\)", str(error)):
            return available
        raise
    raise RuntimeError(f"{device.device_kind} has room for 16 TiB?")


def _find(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) * _UNITS[found[2]] if found else None
