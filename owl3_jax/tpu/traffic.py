"""Memory traffic of a compiled module: bytes that it writes to HBM, from the text of the module."""

import re

from owl3_jax.hlo import Instruction, Module, arrays, runs

# Opcodes that make no array, or only announce one.
_MAKES_NOTHING = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "async-update",
        "send",
        "recv",
    )
)
_IN_VMEM = re.compile(r"[a-z]\w*\[[\d,]*\]\{[^}]*S\([1-9]\d*\)[^}]*\}")


def bytes_made(module: Module) -> int:
    """Bytes of all arrays that one execution makes in HBM, at least; each is written, and later read.

    Loops count by their trips. Left out is what may not happen or is part of an array that exists already: branches, slices
    that are written into a larger array, operations in the background.
    """
    loops = {body for lines in module.computations.values() for line in lines for body in _run_by_themselves(line)}
    made = 0
    for run in runs(module):
        if not run.conditional and (run.computation in loops or run.computation == module.entry):
            lines = module.computations.get(run.computation, ())
            made += run.times * sum(_bytes_in_hbm(line) for line in lines if _makes_an_array(module, line))
    return made


def _run_by_themselves(line: Instruction) -> list[str]:
    """Computations that are more than a part of this instruction."""
    if line.opcode == "while":
        return re.findall(r"\bbody=%?([\w.\-]+)", line.rest)
    return re.findall(r"\bto_apply=%?([\w.\-]+)", line.rest) if line.opcode == "call" else []


def _makes_an_array(module: Module, line: Instruction) -> bool:
    if line.opcode in _MAKES_NOTHING or line.opcode.endswith("-start") or "dynamic-update-slice" in (line.opcode + line.name):
        return False
    if "/into_pages/" in line.op_name:  # a scatter into a pool (`attention.page_placement`)
        return False
    inside = [x for name in re.findall(r"\bcalls=%?([\w.\-]+)", line.rest) for x in module.computations.get(name, ())]
    return not any(x.opcode == "dynamic-update-slice" or "chain_id=" in x.rest for x in inside)


def _bytes_in_hbm(line: Instruction) -> int:
    return sum(array.bytes for array in arrays(_IN_VMEM.sub("", line.shape)))
