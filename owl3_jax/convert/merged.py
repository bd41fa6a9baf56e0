"""Parameters that are read piece by piece, and adapters that are merged into them as they are read."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped

from owl3_jax.convert.official import Index


@runtime_checkable
class Readable(Protocol):
    """One of our parameters; nothing of it is in memory before `read`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""

    @property
    def dtype(self) -> np.dtype:
        """Of what `read` returns."""

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """The part that `index` (a slice for each dim) chooses, or all of it."""


@runtime_checkable
class Addend(Protocol):
    """What LoRA adds to a kernel, computed piece by piece."""

    def read(self, index: Index) -> Float32[np.ndarray, "..."]:
        """What it adds to the part of the kernel that `index` chooses."""


@dataclasses.dataclass(frozen=True)
class Merged:
    """A kernel with its adapter added, in float32 and then in the kernel's dtype."""

    kernel: Readable
    adapter: Addend

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self.kernel.shape

    @property
    def dtype(self) -> np.dtype:
        """Of what `read` returns."""
        return self.kernel.dtype

    def read(self, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """The part that `index` (a slice for each dim) chooses, or all of it."""
        values = self.kernel.read(index).astype(np.float32)
        return (values + self.adapter.read(index or (slice(None),) * len(self.shape))).astype(self.dtype)


def merge(parameters: Mapping[str, Readable], adapters: Mapping[str, Addend]) -> dict[str, Readable]:
    """The parameters, by path, those that have an adapter with it."""
    return {path: Merged(value, adapters[path]) if path in adapters else value for path, value in parameters.items()}
