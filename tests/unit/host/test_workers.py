"""Worker processes end when the process that started them does."""

import subprocess
import sys
import time

import psutil


def test_workers_end_with_a_killed_parent():
    """They would wait for work for ever."""
    command = "from owl3_jax.host.workers import map_in_processes as m; import time; list(m(time.sleep, [0.01] * 100_000, 2))"
    parent = psutil.Process(subprocess.Popen([sys.executable, "-c", command]).pid)
    deadline = time.monotonic() + 60
    while len(workers := parent.children(recursive=True)) < 3 and time.monotonic() < deadline:  # and the resource tracker
        time.sleep(0.05)
    time.sleep(2)  # until they have begun
    parent.kill()
    parent.wait()
    assert len(workers) == 3
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
