"""Devices of a TPU that this machine does not have, to compile for."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from owl3_jax.tpu.chips import CHIPS, Chip

# Without these libtpu looks for a TPU in this machine, locks it, and warns when it finds none.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class TopologyError(ValueError):
    """A topology that cannot be compiled for; the message lists those that can."""


class Topology(NamedTuple):
    """Devices to compile for, of `slices` equal slices."""

    name: str
    slices: int
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        """All chips of all slices."""
        return len(self.devices) // self.chip.devices

    def describe(self) -> str:
        """`v5e:4x4, 16 chips`"""
        slices = f"{self.slices} x " if self.slices > 1 else ""
        return f"{slices}{self.name}, {self.chips} {'chip' if self.chips == 1 else 'chips'}"


def get_topology(name: str, slices: int = 1) -> Topology:
    """The topology `GENERATION:AxB` or `GENERATION:AxBxC`, e.g. v5e:4x4.

    Computation on this machine goes to its CPU from then on.

    Raises TopologyError for an unknown one, and where libtpu is not installed.
    """
    generation = name.partition(":")[0]
    if generation not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
        raise TopologyError(f"unknown topology {name!r}: {_known_forms()}")
    if slices < 1:
        raise TopologyError(f"there must be at least one slice, got {slices}")
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            "compiling for TPUs needs libtpu, though no TPU: pip install libtpu, in the version of constraints.txt"
        )
    jax.config.update("jax_platforms", "cpu")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    chip = CHIPS[generation]
    options = {**dict(chip.topology_options), **({"num_slices": slices} if slices > 1 else {})}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(f"libtpu does not know the topology {name!r} ({error}): {_known_forms()}") from error
    return Topology(name, slices, chip, tuple(devices))


def _known_forms() -> str:
    examples = ", ".join(chip.topology for chip in CHIPS.values())
    return f"use GENERATION:AxB (v5e, v6e) or GENERATION:AxBxC (v4, v5p, tpu7x), 1x1 or multiples of 2x2, e.g. {examples}"
