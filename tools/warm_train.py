"""Runs of train.py, each in a process of its own that is forked from this one: importing takes longer than all else they do.

    python tools/warm_train.py DESCRIPTOR

`disturbed_runs.py` has many lives on one machine. It holds the other end of the socket that this inherits as DESCRIPTOR, and
sends a socket for each process:

    <- {"arguments", "environment"}, a descriptor to write to
    -> the number of the process
    -> its exit code, or minus the number of the signal that ended it

The process ends as any other does, and so does this one when the socket is closed. Each writes what it has compiled to JAX's
cache, as in the second life of a machine of its own: by itself only process 0 writes to it, and on CPUs no other process can
read what it wrote, because the cache's keys differ between processes.
"""

import importlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence

import jax
from jax._src import compilation_cache, compiler
from jaxlib import _jax

NUMBER = struct.Struct("<i")
LONGEST_ORDER = 1 << 20


def _write(
    cache_key: str,
    compile_time_secs: float,
    module_name: str,
    backend: _jax.Client,
    executable: _jax.LoadedExecutable,
    host_callbacks: Sequence[object],
) -> None:
    compilation_cache.put_executable_and_time(cache_key, module_name, executable, backend, int(compile_time_secs))


def _import_everything() -> None:
    """TensorBoard's writer as where torch is not installed: it would import it, for 2.6 s."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # what makes an import fail
    importlib.import_module("tensorboardX")
    del sys.modules["torch"]
    importlib.import_module("owl3_jax.cli.train")


def _fork_until_forked(control: socket.socket) -> list[str]:
    """Starts processes until the socket is closed, which ends this one. In such a process it returns, with the arguments."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            sys.exit()
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                control.close()
                return _watch_until_forked(connection)


def _watch_until_forked(connection: socket.socket) -> list[str]:
    """Starts one process and says how it ends. In that process it returns, with the arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said, descriptors, _, _ = socket.recv_fds(connection, LONGEST_ORDER, 1)
    if (number := os.fork()) > 0:
        os.close(descriptors[0])
        connection.sendall(NUMBER.pack(number))
        _, status = os.waitpid(number, 0)
        connection.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os._exit(0)
    connection.close()
    os.setsid()
    order = json.loads(said)
    os.environ.update(order["environment"])
    for stream in (1, 2):
        os.dup2(descriptors[0], stream)
    os.close(descriptors[0])
    arguments: list[str] = order["arguments"]
    return arguments


if __name__ == "__main__":
    _import_everything()
    compiler._cache_write = _write
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how those end that watch a process
    sys.argv[1:] = _fork_until_forked(socket.socket(fileno=int(sys.argv[1])))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from owl3_jax.cli.train import main

    main()
