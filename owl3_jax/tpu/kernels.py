"""The time of attention kernels, for which the compiler has no estimate."""

import math
import re
from collections.abc import Sequence

from owl3_jax.hlo import Array, Instruction, arrays
from owl3_jax.tpu.chips import Chip

_OPERANDS = re.compile(r"operand_layout_constraints=\{(.*?)\}, \w+=")
_ROWS = re.compile(r"/(\d+)_rows/")  # of text, in one call: `attention.backends.splash`
_PAGES = re.compile(r"/pages_over_(\d+)/")  # devices, in all of which a table's pages are: `attention.pages`
_LANES = 128  # of a vector register, and of a side of the matrix unit's operands

# Matrix products and operations of the vector units for each score, counted in the source of JAX's splash kernels.
_SPLASH = {"splash_mha_fwd": (2, 14), "splash_mha_dq": (3, 12), "splash_mha_dkv": (4, 14)}


def kernel_seconds(line: Instruction, chip: Chip) -> float:
    """The time of an attention kernel: of its matrix products, its other operations, or its traffic, whichever is longest.

    Heads are padded to the width of the matrix unit. Of causal text, the blocks that no position sees are left out; those that
    segments or images hide are not known before a run.
    """
    operands = _OPERANDS.search(line.rest)
    found = arrays(operands[1]) if operands else []
    if "paged_attention" in line.name:
        return _paged_bytes(line, found) / chip.hbm
    moved = sum(array.bytes for array in [*found, *arrays(line.shape)])
    queries, keys = _queries_and_keys(found)
    name = next((name for name in _SPLASH if line.name.startswith(name)), None)
    if name is None or queries is None or keys is None:
        return moved / chip.hbm
    products, operations = _SPLASH[name]
    heads, tokens, size = queries.dims
    number = keys.dims[1]
    if any(array.dims == (heads, size, tokens) for array in arrays(line.shape)):  # an output: inputs have tokens in lanes
        tokens, size, number = size, tokens, keys.dims[2]
    joined = _ROWS.search(line.op_name)
    rows = int(joined[1]) if joined else 1
    scores = _causal_share(line, found, rows, tokens // rows, number // rows) * heads * tokens * number / rows
    width = math.ceil(size / _LANES) * _LANES
    return max(2 * products * width * scores / chip.flops, operations * scores / chip.vector, moved / chip.hbm)


def _paged_bytes(line: Instruction, operands: Sequence[Array]) -> float:
    """Keys and values of all pages of all rows, of which a device reads those that it holds."""
    table = next(array for array in operands if array.dtype == "s32" and len(array.dims) == 2)
    pages = [array for array in operands if len(array.dims) == 5]
    devices = _PAGES.search(line.op_name)
    per_page = sum(array.bytes / (array.dims[0] * array.dims[1]) for array in pages)
    return math.prod(table.dims) * per_page / (int(devices[1]) if devices else 1)


def _causal_share(line: Instruction, operands: Sequence[Array], rows: int, tokens: int, keys: int) -> float:
    """The share of pairs of a row's blocks that are not hidden by order: text has as many keys as positions, and a table."""
    tables = [array.dims[1:] for array in operands if len(array.dims) == 3 and array.dtype == "s32"]
    if not tables or tokens != keys or "hyper_attention" in line.op_name:
        return 1.0
    lines, columns = tables[0]  # blocks of queries, and of keys; those of all rows where the kernel does not loop over them
    lines, columns = (lines, columns // rows) if "dkv" in line.name else (lines // rows, columns)
    return sum(math.ceil((number + 1) * columns / lines) for number in range(lines)) / (lines * columns)


def _queries_and_keys(operands: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """The first two of an attention's operands that are [heads, tokens, head size]."""
    found = [array for array in operands if len(array.dims) == 3 and array.dtype in ("bf16", "f32")]
    return (found[0], found[1]) if len(found) > 1 else (None, None)
