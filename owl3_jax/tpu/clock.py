"""The compiler's clock: how long a program takes on a chip, by what the TPU compiler expects of its own instructions.

The compiler schedules instructions by estimates of its own, in cycles, and writes them into the last dump of a module. Their
sum over entry, loops and branches is the time that a core is busy. What has no estimate is counted here:

    kernels        attention (splash): its products at padded sizes over the peak, the element-wise work over the vector units'
                   rate, or the bytes that it moves, whichever takes longest (`_kernel_seconds`)
    collectives    bytes over the links; of those that run in the background, what is left when their result is needed
    copies in the background   bytes over HBM's bandwidth, in the same way

It ranks variants of a program; docs/tpu.md compares it with runs that others have measured.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from owl3_jax.hlo import Array, Instruction, Module, arrays, called, trip_count
from owl3_jax.tpu.chips import Chip
from owl3_jax.tpu.collectives import sent_bytes

Kind = Literal["products", "element-wise", "copies", "kernels", "collectives"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Shares = Callable[[Instruction], Sequence[float] | None]  # how often each branch of a conditional is taken, if that is known

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_KERNEL_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, \w+=")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
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
_LANES = 128  # of a vector register, and of a side of the matrix unit's operands

# Matrix products and operations of the vector units for each score, counted in the source of JAX's splash kernels.
_SPLASH = {"splash_mha_fwd": (2, 14), "splash_mha_dq": (3, 12), "splash_mha_dkv": (4, 14)}
_SPLASH_FUSED_BACKWARD = (5, 16)


class Item(NamedTuple):
    """An instruction, with what it takes."""

    instruction: Instruction
    kind: Kind
    times: float  # in one execution of the program; branches count by how often they are taken
    seconds: float  # all times together
    exposed: bool = False  # something that runs in the background, and that the core has to wait for


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
        now, background = 0.0, _Background(self._module, self._chip)
        for line in self._module.computations.get(computation, ()):
            background.start(line, now)
            for item in [*self._inside(line), *background.wait(line, now)]:
                now += item.seconds
                yield item

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
            yield Item(line, "kernels", 1, _kernel_seconds(line, self._chip))
        elif not line.opcode.endswith("-start") and (sent := sent_bytes(line)):
            yield Item(line, "collectives", 1, sent / _link_bytes(line, self._chip), exposed=True)

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
            for name in called(line):
                for inner in self._module.computations.get(name, ()):
                    yield from self._opcodes(inner)


def _repeated(items: Iterable[Item], times: float) -> Iterator[Item]:
    for item in items:
        yield item._replace(times=item.times * times, seconds=item.seconds * times)


class _Transfer(NamedTuple):
    kind: Kind
    ends: float  # seconds since the computation has begun


class _Background:
    """What runs beside the core's instructions: transfers, one after the other on each network."""

    def __init__(self, module: Module, chip: Chip) -> None:
        self._module, self._chip = module, chip
        self._running: dict[str, _Transfer] = {}  # by what its end refers to
        self._free = defaultdict[Kind, float](float)  # when the last transfer of a kind ends

    def start(self, line: Instruction, now: float) -> None:
        """Notes a transfer if this instruction begins one."""
        begun = self._begun(line)
        if begun is None:
            return
        key, kind, seconds = begun
        ends = max(now, self._free[kind]) + seconds
        self._free[kind] = ends
        self._running[key] = _Transfer(kind, ends)

    def wait(self, line: Instruction, now: float) -> Iterator[Item]:
        """The time that the core waits here for a transfer that has begun before."""
        for key in self._ended(line):
            transfer = self._running.pop(key, None)
            if transfer and transfer.ends > now:
                yield Item(line, transfer.kind, 1, transfer.ends - now, exposed=True)

    def _begun(self, line: Instruction) -> tuple[str, Kind, float] | None:
        if line.opcode in ("copy-start", "async-start") and not (inner := self._collective(line)):
            size = max((array.bytes for array in arrays(line.shape)[1:]), default=0)
            return line.name, "copies", size / self._chip.hbm
        if line.opcode.endswith("-start"):
            collective = inner if line.opcode == "async-start" else line
            if collective and (sent := sent_bytes(collective)):
                return line.name, "collectives", sent / _link_bytes(collective, self._chip)
            return None
        if line.opcode == "fusion" and (collective := self._fused(line, "AsyncCollectiveStart")):
            found = _CHANNEL.search(collective.rest)
            return (
                f"channel {found[1] if found else ''}",
                "collectives",
                sent_bytes(collective) / _link_bytes(collective, self._chip),
            )
        return None

    def _ended(self, line: Instruction) -> list[str]:
        if line.opcode.endswith("-done"):
            return _OPERAND.findall(line.rest.partition(")")[0])[:1]
        if line.opcode == "fusion" and (collective := self._fused(line, "AsyncCollectiveDone")):
            found = _CHANNEL.search(collective.rest)
            return [f"channel {found[1] if found else ''}"]
        return []

    def _collective(self, line: Instruction) -> Instruction | None:
        """The collective operation that an `async-start` runs."""
        inside = (inner for name in called(line) for inner in self._module.computations.get(name, ()))
        return next((inner for inner in inside if sent_bytes(inner)), None)

    def _fused(self, line: Instruction, target: str) -> Instruction | None:
        """The collective operation in a fusion that starts or ends it."""
        inside = [inner for name in called(line) for inner in self._module.computations.get(name, ())]
        if not any((found := _TARGET.search(inner.rest)) and found[1] == target for inner in inside):
            return None
        return next((inner for inner in inside if sent_bytes(inner)), None)


def _link_bytes(line: Instruction, chip: Chip) -> float:
    """Bytes a second that a collective can send: a permutation over one link, others over both directions of an axis."""
    return chip.ici / chip.links * (1 if line.opcode.startswith("collective-permute") else 2)


def _kernel_seconds(line: Instruction, chip: Chip) -> float:
    """The time of an attention kernel: of its matrix products, its other operations, or its traffic, whichever is longest.

    Heads are padded to the width of the matrix unit. Of blocks that a mask hides from all queries, causal ones count half; what
    segments hide is not known before a run.
    """
    operands = _KERNEL_OPERANDS.search(line.rest)
    found = arrays(operands[1]) if operands else []
    moved = sum(array.bytes for array in [*found, *arrays(line.shape)])
    queries, keys = _queries_and_keys(found)
    name = next((name for name in _SPLASH if line.name.startswith(name)), None)
    if name is None or queries is None or keys is None:
        return moved / chip.hbm
    products, operations = _SPLASH[name]
    if name == "splash_mha_dkv" and r"\"use_fused_bwd_kernel\": true" in line.rest:
        products, operations = _SPLASH_FUSED_BACKWARD
    heads, tokens, size = queries.dims
    share = 0.5 * (1 + 1 / max(1, tokens // 512)) if tokens == keys.dims[1] and "hyper_attention" not in line.op_name else 1.0
    scores = share * heads * tokens * keys.dims[1]
    width = math.ceil(size / _LANES) * _LANES
    return max(2 * products * width * scores / chip.flops, operations * scores / chip.vector, moved / chip.hbm)


def _queries_and_keys(operands: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """The first two of an attention's operands that are [heads, tokens, head size]."""
    found = [array for array in operands if len(array.dims) == 3 and array.dtype in ("bf16", "f32")]
    return (found[0], found[1]) if len(found) > 1 else (None, None)


def by_part(clock: Clock, part: Callable[[Instruction], tuple[str, str]]) -> Mapping[str, Mapping[str, float]]:
    """Seconds by part of the model, and in it by direction. `part` gives both of an instruction."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for item in clock.items:
        name, direction = part(item.instruction)
        totals[name][direction] += item.seconds
    return {name: dict(directions) for name, directions in sorted(totals.items(), key=lambda pair: -sum(pair[1].values()))}
