"""This machine's processor, as Linux describes it; elsewhere, what Python knows of it."""

import platform
from collections.abc import Mapping
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Its model."""
    return _first_core().get("model name") or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """The names of its sets of instructions: `flags` on x86, `Features` on ARM. None where the system does not list them."""
    core = _first_core()
    return tuple((core.get("flags") or core.get("Features") or "").split())


def _first_core() -> Mapping[str, str]:
    try:
        lines = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {name.strip(): value.strip() for name, value in pairs}
