"""LoRA adapters in PEFT's directories <-> our own: read for inference and training, written from a training run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorstore
from jaxtyping import Float32

from owl3_jax.config import ModelConfig
from owl3_jax.convert.converted import new_directory
from owl3_jax.convert.official import Index, parameter_shapes
from owl3_jax.convert.orbax_params import StoredAdapter, open_adapters
from owl3_jax.convert.table import Entry, from_official, is_unused, official_names, official_shape, row_shape
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.peft import ADAPTER_WEIGHTS, PeftModule, peft_names, read_peft, write_peft_config
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter
from owl3_jax.formats.workdir import is_workdir, last_checkpoint, read_run_base, read_run_model

_WEIGHT = ".weight"
_LINEAR = ("linear", "linear_from_heads")


class Factors(NamedTuple):
    """The two matrices of an adapter, for all layers of a stacked kernel, in the dims of training."""

    a: Float32[np.ndarray, "S i r"]  # S is 1 where the kernel is not stacked
    b: Float32[np.ndarray, "S r o"]
    scale: Float32[np.ndarray, " S"]  # 0 where a layer has no adapter


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """What a PEFT directory has for one of our kernels."""

    entry: Entry
    shape: tuple[int, ...]  # of the kernel
    rows: tuple[PeftModule | None, ...]  # of its layers; None: that one has no adapter

    def read(self, index: Index) -> Float32[np.ndarray, "..."]:
        """What it adds to the part of the kernel that `index` chooses."""
        chosen = self.rows[index[0]] if self.entry.stacked else self.rows
        within = index[1:] if self.entry.stacked else index
        parts = [self._row(module)[within] for module in chosen]
        return np.stack(parts) if self.entry.stacked else parts[0]

    def factors(self) -> Factors:
        """The adapter as training has it. Raises ValueError when its layers have several ranks."""
        ranks = {module.a.shape[0] for module in self.rows if module}
        if len(ranks) > 1:
            raise ValueError(f"{self.entry.path}: its layers have ranks {sorted(ranks)}; training needs the same one in all")
        rank = ranks.pop()
        outputs, inputs = official_shape(self.entry, row_shape(self.entry, self.shape))
        count = len(self.rows)
        factors = Factors(*(np.zeros(s, np.float32) for s in ((count, inputs, rank), (count, rank, outputs), (count,))))
        for row, module in enumerate(self.rows):
            if module:
                factors.a[row], factors.b[row] = module.a.read().T, module.b.read().T
                factors.scale[row] = module.scale
        return factors

    def _row(self, module: PeftModule | None) -> Float32[np.ndarray, "..."]:
        shape = row_shape(self.entry, self.shape)
        if module is None:
            return np.zeros(shape, np.float32)
        product = module.b.read().astype(np.float32) @ module.a.read().astype(np.float32)
        return from_official(self.entry, np.float32(module.scale) * product, shape)


def open_peft(directory: Path, config: ModelConfig) -> dict[str, PeftAdapter]:
    """The adapters of a PEFT directory by their kernel's path; nothing of them is in memory before it is read.

    Raises CheckpointError listing all that is no matrix of this model, or of another shape.
    """
    modules = read_peft(directory)
    adapters: dict[str, PeftAdapter] = {}
    problems: list[str] = []
    known: set[str] = set()
    for entry, shape in parameter_shapes(config).items():
        names = [name.removesuffix(_WEIGHT) for name in official_names(entry, config)]
        if entry.layout in _LINEAR and any(name in modules for name in names):
            known.update(names)
            rows = tuple(modules.get(name) for name in names)
            problems += _shape_problems(names, rows, official_shape(entry, row_shape(entry, shape)))
            adapters[entry.path] = PeftAdapter(entry, shape, rows)
    others = [name for name in modules if name not in known and not is_unused(name + _WEIGHT, config)]
    problems += [f"{name}: not a matrix of this model" for name in sorted(others)]
    if problems:
        raise CheckpointError(directory, problems)
    return adapters


def to_peft(source: Path, destination: Path, *, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
    """Writes the adapters of a run's last checkpoint as a PEFT directory of the official model.

    Args:
        source: a training run's workdir.
        destination: a new directory; it appears when all of it is written.
        advance: called with the bytes just written and those of the whole.

    Raises CheckpointError when the source has no adapters, or the destination exists.
    """
    if not is_workdir(source):
        raise CheckpointError(source, ["it is not the workdir of a training run: only these have adapters"])
    checkpoint = last_checkpoint(source)
    config, base = read_run_model(checkpoint), read_run_base(checkpoint)
    adapters = open_adapters(checkpoint / "params", config)
    if not adapters:
        raise CheckpointError(source, ["the run has no adapters (lora.rank is 0); leave out --adapter"])
    entries = {entry.path: (entry, shape) for entry, shape in parameter_shapes(config).items()}
    matrices = {
        name: matrix
        for path, adapter in adapters.items()
        for name, matrix in _official_matrices(*entries[path], adapter, config).items()
    }
    specs = [TensorSpec(name, matrix.dtype, matrix.shape) for name, matrix in matrices.items()]
    total = sum(spec.nbytes for spec in specs)
    with new_directory(destination) as directory:
        first = next(iter(adapters.values()))
        rank, scale = first.a.shape[-1], _first(first.scale)
        write_peft_config(
            directory,
            rank=rank,
            alpha=scale * rank,
            dropout=0.0 if first.dropout is None else _first(first.dropout),
            modules=sorted(
                {name.removesuffix(_WEIGHT) for path in adapters for name in official_names(entries[path][0], config)}
            ),
            base=str(base.directory) if base else None,
        )
        writer = WeightWriter(directory, specs, stem=ADAPTER_WEIGHTS.removesuffix(".safetensors"), max_shard_bytes=total + 1)
        for name, matrix in matrices.items():
            writer.write(name, matrix)
            advance(matrix.nbytes, total)


def _official_matrices(
    entry: Entry, shape: tuple[int, ...], adapter: StoredAdapter, config: ModelConfig
) -> Mapping[str, Float32[np.ndarray, "_ _"]]:
    outputs, inputs = official_shape(entry, row_shape(entry, shape))
    rank = adapter.a.shape[-1]
    names = official_names(entry, config)
    a = adapter.a.read().result().astype(np.float32).reshape(len(names), inputs, rank)
    b = adapter.b.read().result().astype(np.float32).reshape(len(names), rank, outputs)
    found = {}
    for row, name in enumerate(names):
        name_a, name_b = peft_names(name.removesuffix(_WEIGHT))
        found[name_a], found[name_b] = np.ascontiguousarray(a[row].T), np.ascontiguousarray(b[row].T)
    return found


def _first(numbers: tensorstore.TensorStore) -> float:
    """The number that is stored once for each layer."""
    return float(np.ravel(numbers.read().result())[0])


def _shape_problems(names: list[str], rows: tuple[PeftModule | None, ...], shape: tuple[int, ...]) -> list[str]:
    outputs, inputs = shape
    return [
        f"{name}: shapes {list(row.a.shape)} and {list(row.b.shape)}, expected [r, {inputs}] and [{outputs}, r]"
        for name, row in zip(names, rows, strict=True)
        if row and (row.a.shape[1], row.b.shape[0]) != (inputs, outputs)
    ]
