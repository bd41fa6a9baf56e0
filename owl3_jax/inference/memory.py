"""Checks that an allocation fits before it is made, and explains what to do if memory runs out anyway."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

_GIB = 2**30
_ADVICE = "use fewer images or rows, fewer new tokens, bfloat16 or int8 caches, or a mesh with more devices"


class OutOfMemory(RuntimeError):
    """More memory is needed than there is; the message says how much, for what, and what to do."""


FAILURES = (ValueError, OSError, OutOfMemory)  # errors that a prompt, a file or a checkpoint can cause


def check_fits(needed: int, what: str, devices: int = 1) -> None:
    """Raises OutOfMemory when `needed` bytes, spread evenly over `devices`, are more than a device has left."""
    free = free_bytes()
    if free is not None and needed // devices > free:
        raise OutOfMemory(
            f"{what} need {needed / devices / _GIB:.1f} GiB on each device, {free / _GIB:.1f} GiB are free; {_ADVICE}"
        )


@contextlib.contextmanager
def explain_out_of_memory(advice: str = _ADVICE) -> Iterator[None]:
    """Raises OutOfMemory for what XLA or numpy raises when memory runs out inside it. Other errors pass.

    The programs that ran have lost the arrays that were donated to them.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"memory ran out ({str(error).partition(chr(10))[0]}); {advice}") from error


def free_bytes() -> int | None:
    """Free memory of this process's first device; of the machine, for a CPU; None where it is unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return _free_of_machine() if device.platform == "cpu" else None


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
