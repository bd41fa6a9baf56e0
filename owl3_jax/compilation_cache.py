"""Compiled programs, kept from one start to the next."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in JAX_COMPILATION_CACHE_DIR, else in the user's cache directory.

    Programs that compile in less than a second are not kept (jax's own default).

    On CPUs only where that variable asks for it: such a program is bound to the very kind of processor that it was
    compiled on, while a home directory may serve several. On Intel's, jaxlib 0.10 refuses even the programs of the same
    machine, with an error line for each (jax-ml/jax issue 38445); on an AMD EPYC the variable takes the start of
    tools/generate.py with a tiny model from 8 to 5 s of processor time.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is None and jax.default_backend() != "cpu":
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "owl3_jax" / "compiled"))
