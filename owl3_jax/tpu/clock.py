"""The compiler's clock: how long a program takes on a chip, by what the TPU compiler expects of its own instructions.

The compiler schedules instructions by estimates of its own, in cycles, and writes them into the last dump of a module. Their
sum over entry, loops and branches is the time that a core is busy. What has no estimate is counted here:

    kernels        attention (splash): its products at padded sizes over the peak, the element-wise work over the vector units'
                   rate, or the bytes that it moves, whichever takes longest (`kernels`)
    collectives    bytes over the links; of those that run in the background, what is left when their result is needed
    copies in the background   bytes over HBM's bandwidth, or over that to the host's memory, in the same way

It ranks variants of a program: docs/tpu.md.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from owl3_jax.hlo import Instruction, Module, called, inside, trip_count
from owl3_jax.tpu.chips import Chip
from owl3_jax.tpu.kernels import kernel_seconds
from owl3_jax.tpu.transfers import Background, waited_for

Kind = Literal["products", "element-wise", "copies", "kernels", "collectives"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Shares = Callable[[Instruction], Sequence[float] | None]  # how often each branch of a conditional is taken, if that is known

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_MOVES = frozenset(
    (
        "copy",
        "pad",
        "broadcast",
        "reshape",
        "transpose",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "concatenate",
        "bitcast",
        "convert",
        "iota",
        "gather",
        "scatter",
        "reverse",
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "custom-call",
    )
)


class Item(NamedTuple):
    """An instruction, with what it takes."""

    instruction: Instruction
    kind: Kind
    times: float  # in one execution of the program; branches count by how often they are taken
    seconds: float  # all times together


class Clock(NamedTuple):
    """All that takes time on a device, in one execution."""

    items: Sequence[Item]
    unknown: int  # conditionals of which nobody knows how often each branch is taken: the longest counts

    @property
    def seconds(self) -> float:
        """Of the whole program."""
        return math.fsum(item.seconds for item in self.items)

    def by_kind(self) -> dict[Kind, float]:
        """Seconds of each kind."""
        return {kind: math.fsum(item.seconds for item in self.items if item.kind == kind) for kind in KINDS}

    def dearest(self, count: int) -> list[Item]:
        """The instructions that take longest."""
        return sorted(self.items, key=lambda item: -item.seconds)[:count]


def no_shares(conditional: Instruction) -> None:
    """Of a program without branches that are known: the longest one counts."""


def read_clock(module: Module, chip: Chip, shares: Shares = no_shares) -> Clock:
    """The clock of a module, from the text that the compiler dumps as `after_codegen.txt`."""
    reader = _Reader(module, chip, shares)
    items = reader.items(module.entry)
    return Clock(items, reader.unknown)


class _Reader:
    def __init__(self, module: Module, chip: Chip, shares: Shares) -> None:
        self._module, self._chip, self._shares = module, chip, shares
        self._found: dict[str, list[Item]] = {}
        self.unknown = 0

    def items(self, computation: str) -> list[Item]:
        """What one execution of a computation takes."""
        if computation not in self._found:
            self._found[computation] = list(self._read(computation))
        return self._found[computation]

    def _read(self, computation: str) -> Iterator[Item]:
        now, background = 0.0, Background(self._module, self._chip)
        for line in self._module.computations.get(computation, ()):
            background.start(line, now)
            for item in self._inside(line):
                now += item.seconds
                yield item
            if wait := background.wait(line, now):
                now += wait.seconds
                yield Item(line, "copies" if wait.is_copy else "collectives", 1, wait.seconds)

    def _inside(self, line: Instruction) -> Iterator[Item]:
        if line.opcode == "while":
            trips = float(trip_count(self._module, line) or 1)
            yield from _repeated((item for name in called(line) for item in self.items(name)), trips)
        elif line.opcode == "conditional":
            yield from self._branches(line)
        elif line.opcode == "call":
            yield from (item for name in called(line) for item in self.items(name))
        elif found := _CYCLES.search(line.rest):
            yield Item(line, self._kind(line), 1, int(found[1]) / self._chip.clock)
        elif line.opcode == "custom-call" and "tpu_custom_call" in line.rest:
            yield Item(line, "kernels", 1, kernel_seconds(line, self._chip))
        elif collective := waited_for(self._module, line):
            yield Item(line, "collectives", 1, collective.seconds(self._chip))

    def _branches(self, line: Instruction) -> Iterator[Item]:
        branches = [self.items(name) for name in called(line)]
        shares = self._shares(line)
        if shares is None:
            self.unknown += 1
            yield from max(branches, key=lambda items: math.fsum(item.seconds for item in items), default=[])
            return
        for items, share in zip(branches, shares, strict=True):
            yield from _repeated(items, share)

    def _kind(self, line: Instruction) -> Kind:
        opcodes = set(self._opcodes(line))
        if opcodes & {"dot", "convolution"}:
            return "products"
        return "copies" if opcodes <= _MOVES else "element-wise"

    def _opcodes(self, line: Instruction) -> Iterator[str]:
        if line.opcode != "fusion":
            yield line.opcode
        else:
            for inner in inside(self._module, line):
                yield from self._opcodes(inner)


def _repeated(items: Iterable[Item], times: float) -> Iterator[Item]:
    for item in items:
        yield item._replace(times=item.times * times, seconds=item.seconds * times)


def by_part(clock: Clock, part: Callable[[Instruction], tuple[str, str]]) -> Mapping[str, Mapping[str, float]]:
    """Seconds by part of the model, and in it by direction. `part` gives both of an instruction."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for item in clock.items:
        name, direction = part(item.instruction)
        totals[name][direction] += item.seconds
    return {name: dict(directions) for name, directions in sorted(totals.items(), key=lambda pair: -sum(pair[1].values()))}
