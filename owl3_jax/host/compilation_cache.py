"""Keeping compiled programs from one start to the next."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from owl3_jax.host.processor import instructions, processor_name


def use_compilation_cache() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, else in the user's cache directory.

    Programs that compile in less than a second are not kept (jax's own default). JAX_ENABLE_COMPILATION_CACHE=0 turns this
    off. A program for a CPU uses the instructions of the processor that it was compiled on, yet jaxlib loads it on any
    other, with a warning and perhaps a crash. So each kind of processor has its own directory, since several may share a
    home directory. This asks for no device, so it may be called before `jax.distributed` starts.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "owl3_jax" / "compiled" / _processor()))


def _processor() -> str:
    """A name shared by all processors with the same instructions."""
    kind = f"{platform.machine()} {' '.join(instructions()) or processor_name()}"
    return hashlib.blake2b(kind.encode(), digest_size=8).hexdigest()
