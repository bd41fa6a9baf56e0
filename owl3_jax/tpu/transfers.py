"""The time of communication and of copies in the background: bytes over the links or over HBM's bandwidth.

What runs in the background takes time only if its result is needed before it is there.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from owl3_jax.hlo import Instruction, Module, arrays, called, inside
from owl3_jax.tpu.chips import Chip
from owl3_jax.tpu.collectives import sent_bytes

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_PAIRS = re.compile(r"source_target_pairs=\{.*?\}\}")
_HOST_MEMORY = "S(5)"  # in a layout
_HOST_BANDWIDTH = 16e9  # bytes a second of PCIe, by the scaling book (see `chips`)


class Exchange(NamedTuple):
    """An operation between devices."""

    instruction: Instruction
    sent: float  # bytes of a device

    def seconds(self, chip: Chip) -> float:
        """A permutation takes one link, others both directions of an axis; what goes to another slice takes DCN."""
        if self.instruction.opcode == "send":
            return self.sent / chip.dcn
        links = 1 if self.instruction.opcode.startswith("collective-permute") else 2
        return self.sent / (links * chip.ici / chip.links)

    @property
    def way(self) -> str:
        """What transfers share, so that they wait for each other: permutations in other directions take other links."""
        if self.instruction.opcode == "send":
            return "send"
        pairs = _PAIRS.search(self.instruction.rest)
        return pairs[0] if pairs else "ICI"

    @property
    def channel(self) -> str:
        """By which the parts of one operation in the background refer to it."""
        found = _CHANNEL.search(self.instruction.rest)
        return f"channel {found[1] if found else ''}"


def waited_for(module: Module, line: Instruction) -> Exchange | None:
    """The collective operation that an instruction carries out while the core waits."""
    if line.opcode == "send" or line.opcode.endswith("-start"):
        return None
    if line.opcode != "fusion":
        return Exchange(line, sent) if (sent := sent_bytes(line)) else None
    return next((found for found in _collectives(module, line) if "chain_id=" not in found.instruction.rest), None)


def _collectives(module: Module, line: Instruction) -> list[Exchange]:
    """Those in the computations that an instruction runs."""
    found = [Exchange(inner, sent_bytes(inner, name)) for name in called(line) for inner in module.computations.get(name, ())]
    return [collective for collective in found if collective.sent]


class _Begun(NamedTuple):
    key: str  # what refers to it in the end
    is_copy: bool
    way: str
    seconds: float


class Wait(NamedTuple):
    """Time that the core waits for a transfer."""

    is_copy: bool
    seconds: float


class _Running(NamedTuple):
    is_copy: bool
    ends: float  # seconds since the computation has begun


class Background:
    """What runs beside the instructions of a computation: transfers, one after the other on each way."""

    def __init__(self, module: Module, chip: Chip) -> None:
        self._module, self._chip = module, chip
        self._running: dict[str, _Running] = {}
        self._free = defaultdict[str, float](float)  # when the last transfer of a way ends

    def start(self, line: Instruction, now: float) -> None:
        """Notes a transfer if this instruction begins one; `now` are seconds since the computation has begun."""
        begun = self._collective(line) or self._copy(line)
        if begun:
            self._free[begun.way] = max(now, self._free[begun.way]) + begun.seconds
            self._running[begun.key] = _Running(begun.is_copy, self._free[begun.way])

    def wait(self, line: Instruction, now: float) -> Wait | None:
        """How long this instruction waits for a transfer that has begun before."""
        if line.opcode == "recv-done":  # the peer sends when this device does
            transfer = _Running(False, self._free["send"])
        else:
            transfer = self._running.pop(self._ended(line), _Running(False, 0.0))
        return Wait(transfer.is_copy, transfer.ends - now) if transfer.ends > now else None

    def _collective(self, line: Instruction) -> _Begun | None:
        within = _collectives(self._module, line) if line.opcode in ("async-start", "fusion") else []
        if line.opcode == "fusion":
            if not (within and self._has(line, "AsyncCollectiveStart")):
                return None
            return _Begun(within[0].channel, False, within[0].way, within[0].seconds(self._chip))
        if line.opcode == "send" or line.opcode.endswith("-start"):
            found = within[0] if within else Exchange(line, sent_bytes(line))
            return _Begun(line.name, False, found.way, found.seconds(self._chip)) if found.sent else None
        return None

    def _copy(self, line: Instruction) -> _Begun | None:
        if line.opcode not in ("copy-start", "async-start"):
            return None
        to_host = _HOST_MEMORY in line.shape
        seconds = self._copied(line) / (_HOST_BANDWIDTH if to_host else self._chip.hbm)
        return _Begun(line.name, True, "host" if to_host else "HBM", seconds)

    def _copied(self, line: Instruction) -> int:
        """Bytes; of an update, those that are new."""
        within = inside(self._module, line)
        updates = [inner for inner in within if inner.opcode == "dynamic-update-slice"]
        if not updates:
            return max((array.bytes for array in arrays(line.shape)[1:]), default=0)
        _, update, *_ = _operands(updates[0])
        return sum(array.bytes for inner in within if inner.name == update for array in arrays(inner.shape))

    def _ended(self, line: Instruction) -> str:
        if line.opcode.endswith("-done"):
            return next(iter(_operands(line)), "")
        if line.opcode == "fusion" and self._has(line, "AsyncCollectiveDone"):
            return next((found.channel for found in _collectives(self._module, line)), "")
        return ""

    def _has(self, line: Instruction, target: str) -> bool:
        targets = (_TARGET.search(inner.rest) for inner in inside(self._module, line))
        return any(found is not None and found[1] == target for found in targets)


def _operands(line: Instruction) -> Sequence[str]:
    return _OPERAND.findall(line.rest.partition(")")[0])
