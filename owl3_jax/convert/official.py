"""An official checkpoint as our parameters, checked whole before anything of it is read."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Shaped, UInt8

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.convert.table import (
    TIED_HEAD,
    Entry,
    entries_for,
    from_official,
    official_names,
    official_shape,
    row_shape,
    sort_names,
)
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import Tensor, find_tensors
from owl3_jax.models.owl3 import abstract_params

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters, made of official tensors; nothing of it is in memory before `read`."""

    entry: Entry
    shape: tuple[int, ...]
    dtype: np.dtype  # of what `read` returns
    tensors: tuple[Tensor, ...]  # one for each row of a stack, else one

    @property
    def nbytes(self) -> int:
        """Size of the whole, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """The part of the parameter that `index` (a slice for each dim) chooses, or all of it; reads no other bytes."""
        slices = index or (slice(None),) * len(self.shape)
        rows, within = (slices[0], slices[1:]) if self.entry.stacked else (slice(None), slices)
        out = np.empty([len(range(*s.indices(size))) for s, size in zip(slices, self.shape, strict=True)], self.dtype)
        for target, tensor in zip(out if self.entry.stacked else [out], self.tensors[rows], strict=True):
            target[...] = from_official(self.entry, tensor.read(), row_shape(self.entry, self.shape))[within]
        return out


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """The content of a checkpoint directory, by our names."""

    parameters: dict[str, Parameter]  # by path, "/" between levels
    unused: tuple[Tensor, ...]  # of the official model, but never read
    tied_head: bool  # whether the embedding is there twice


def open_checkpoint(directory: Path, config: ModelConfig, dtype: np.dtype | None = None) -> OfficialCheckpoint:
    """The parameters of an official checkpoint directory, to be read in `dtype` (default: the file's).

    Raises:
        CheckpointError: listing all tensors that are missing, unknown to the table, of a wrong shape, or of another dtype
            than their neighbours; and everything that `find_tensors` finds.
    """
    return assemble(directory, find_tensors(directory), config, dtype)


def assemble(
    directory: Path, tensors: Mapping[str, Tensor], config: ModelConfig, dtype: np.dtype | None = None
) -> OfficialCheckpoint:
    """`open_checkpoint` for tensors that were found already; `directory` is for messages only."""
    names = sort_names(tensors, config)
    problems = [f"{name}: missing" for name in names.missing]
    problems += [f"{name}: in {tensors[name].file.name}, but not a tensor of this model" for name in names.unmapped]
    problems += _hyper_layer_problems(tensors, config)
    parameters = {}
    for entry, shape in parameter_shapes(config).items():
        parts = tuple(tensors[name] for name in official_names(entry, config) if name in tensors)
        problems += _shape_problems(entry, shape, parts) + ([] if dtype else _dtype_problems(parts))
        if parts:
            parameters[entry.path] = Parameter(entry, shape, dtype or parts[0].dtype, parts)
    if names.tied_head and not problems:
        problems += _tied_head_problems(tensors[TIED_HEAD], parameters["language_model/embed_tokens"].tensors[0])
    if problems:
        raise CheckpointError(directory, problems)
    return OfficialCheckpoint(parameters, tuple(tensors[name] for name in names.unused), names.tied_head)


def parameter_shapes(config: ModelConfig) -> dict[Entry, tuple[int, ...]]:
    """The table's entries for this config with the shapes of our parameters."""
    shapes = flatten_dict(nn.unbox(abstract_params(config, ComputeConfig())), sep="/")
    return {entry: shapes[entry.path].shape for entry in entries_for(config)}


def _hyper_layer_problems(names: Iterable[str], config: ModelConfig) -> list[str]:
    found = re.compile(r"language_model\.model\.layers\.(\d+)\.self_attn\.v_kv_proj\.weight")
    layers = sorted(int(match[1]) + 1 for match in map(found.fullmatch, names) if match)
    if layers == list(config.hyper_layers):
        return []
    return [f"config.json: hyper_layers are {list(config.hyper_layers)}, but the tensors are those of {layers}"]


def _shape_problems(entry: Entry, shape: tuple[int, ...], parts: Iterable[Tensor]) -> list[str]:
    expected = official_shape(entry, row_shape(entry, shape))
    return [f"{part.name}: shape {list(part.shape)}, expected {list(expected)}" for part in parts if part.shape != expected]


def _dtype_problems(parts: tuple[Tensor, ...]) -> list[str]:
    return [
        f"{part.name}: dtype {part.dtype} in {part.file.name}, but {parts[0].name} is {parts[0].dtype}; choose a dtype"
        for part in parts
        if part.dtype != parts[0].dtype
    ]


def _tied_head_problems(head: Tensor, embedding: Tensor) -> list[str]:
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    if same and all(np.array_equal(a, b) for a, b in zip(_blocks(head), _blocks(embedding), strict=True)):
        return []
    return [f"{head.name}: differs from {embedding.name}, but config.json says tie_word_embeddings"]


def _blocks(tensor: Tensor, rows: int = 4096) -> Iterator[UInt8[np.ndarray, "rows _"]]:
    """The bytes of a matrix, some rows at a time."""
    for start in range(0, tensor.shape[0], rows):
        yield tensor.read()[start : start + rows].view(np.uint8)
