"""Compiled programs, kept from one start to the next."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, else in the user's cache directory.

    On CPUs only where that variable asks for it: such a program is bound to the very kind of processor that it was
    compiled on, and jaxlib 0.10 warns of a mismatch even on the same machine (jax-ml/jax issue 38445).
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is None and jax.default_backend() != "cpu":
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "owl3_jax" / "compiled"))
