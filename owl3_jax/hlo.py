"""Reading the text of a compiled module: its computations, what they call, how often each of them runs, and its arrays."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_MODULE = re.compile(r"HloModule ([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\d\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_FILE = re.compile(r'^(\d+) "(.*)"$', re.MULTILINE)
_PLACE = re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", re.MULTILINE)
_STACK_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+)", re.MULTILINE)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # an array `bf16[4,8]{...}` or a tuple of arrays
    opcode: str
    rest: str  # operands and attributes

    @property
    def op_name(self) -> str:
        """The operation of the program that it comes from, in its named scopes; empty if the compiler does not know."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def frame(self) -> int:
        """Where in the program it comes from, see `source_lines`; 0 if the compiler does not know."""
        found = _FRAME.search(self.rest)
        return int(found[1]) if found else 0


class Array(NamedTuple):
    """An array by the names that XLA gives to types."""

    dtype: str  # bf16, s32, pred
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size without the padding of a layout."""
        bits = _BITS.search(self.dtype)  # of s32, bf16, f8e4m3fn
        of_one = 8 if self.dtype == "pred" else int(bits[0]) if bits else 0
        return math.ceil(of_one * math.prod(self.dims) / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Module(NamedTuple):
    """Computations by name."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    name: str = ""


class Run(NamedTuple):
    """A computation as a part of one execution of the module."""

    computation: str
    times: int  # a loop of unknown trip count counts as one trip
    conditional: bool  # within a branch that may not be taken


def parse(text: str) -> Module:
    """The module in the text that XLA dumps as `after_optimizations.txt`, and `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", list[Instruction]()
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(Instruction(*found.groups()))
        elif line == "}":
            current = []
        elif current:  # attributes of kernels have line breaks
            current[-1] = current[-1]._replace(rest=current[-1].rest + line)
    name = _MODULE.match(text)
    return Module({name: tuple(lines) for name, lines in computations.items()}, entry, name[1] if name else "")


def source_lines(text: str) -> Mapping[int, str]:
    """The line of the program that a frame is at, as `file:line`, by the `stack_frame_id` of instructions."""
    files = dict(_FILE.findall(_table(text, "FileNames")))
    places = {key: f"{files[file]}:{line}" for key, file, line in _PLACE.findall(_table(text, "FileLocations"))}
    return {int(key): places[place] for key, place in _STACK_FRAME.findall(_table(text, "StackFrames"))}


def _table(text: str, name: str) -> str:
    return text.partition(f"\n{name}\n")[2].partition("\n\n")[0]


def arrays(shape: str) -> list[Array]:
    """The arrays in the text of a shape, which may be a tuple."""
    return [Array(dtype, tuple(map(int, dims.split(",") if dims else ()))) for dtype, dims in _ARRAY.findall(shape)]


def runs(module: Module) -> Iterator[Run]:
    """All computations that the entry reaches, once for each place that calls them."""
    stack = [Run(module.entry, 1, False)]
    while stack:
        run = stack.pop()
        yield run
        for instruction in module.computations.get(run.computation, ()):
            trips = (trip_count(module, instruction) or 1) if instruction.opcode == "while" else 1
            conditional = run.conditional or instruction.opcode == "conditional"
            stack += [Run(name, run.times * trips, conditional) for name in called(instruction)]


def open_loops(module: Module) -> int:
    """The number of loops whose trip count is unknown."""
    loops = (x for lines in module.computations.values() for x in lines if x.opcode == "while")
    return sum(trip_count(module, loop) is None for loop in loops)


def called(instruction: Instruction) -> list[str]:
    """The names of the computations that an instruction runs."""
    listed = _LISTED.search(instruction.rest)
    return [*_CALLED.findall(instruction.rest), *(re.findall(r"[\w.\-]+", listed[1]) if listed else ())]


def inside(module: Module, instruction: Instruction) -> list[Instruction]:
    """The instructions of the computations that an instruction runs."""
    return [inner for name in called(instruction) for inner in module.computations.get(name, ())]


def trip_count(module: Module, loop: Instruction) -> int | None:
    """As noted by XLA, else the bound that the loop's condition compares its counter with, which starts at zero."""
    if known := _TRIP_COUNT.search(loop.rest):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.rest)
    lines = module.computations.get(condition[1], ()) if condition else ()
    constants = {i.name: int(found[1]) for i in lines if i.opcode == "constant" and (found := re.match(r"(\d+)\)", i.rest))}
    for line in lines:
        if line.opcode == "compare" and "direction=LT" in line.rest:
            bounds = [constants[name] for name in re.findall(r"%([\w.\-]+)", line.rest.partition(")")[0]) if name in constants]
            return bounds[0] if len(bounds) == 1 else None
    return None
