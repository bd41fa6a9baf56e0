"""Runs train.py as it starts in its second life on a machine of its own; `disturbed_runs.py` has many lives on one machine.

Each process writes what it has compiled to JAX's cache. By itself only process 0 writes to it, and on CPUs no other process can
read what it wrote, because the cache's keys differ between processes.
"""

import importlib
import sys
from collections.abc import Sequence

from jax._src import compilation_cache, compiler
from jaxlib import _jax


def _write(
    cache_key: str,
    compile_time_secs: float,
    module_name: str,
    backend: _jax.Client,
    executable: _jax.LoadedExecutable,
    host_callbacks: Sequence[object],
) -> None:
    compilation_cache.put_executable_and_time(cache_key, module_name, executable, backend, int(compile_time_secs))


def _import_tensorboard_without_torch() -> None:
    """As where torch is not installed. TensorBoard's writer would import it, for 2.6 s."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # what makes an import fail
    importlib.import_module("tensorboardX")
    del sys.modules["torch"]


if __name__ == "__main__":
    _import_tensorboard_without_torch()
    compiler._cache_write = _write
    from owl3_jax.cli.train import main

    main()
