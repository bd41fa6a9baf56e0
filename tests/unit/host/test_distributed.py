"""Processes that find each other, and that are named when they do not come."""

import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owl3_jax.host import distributed
from owl3_jax.host.distributed import DistributedError, Job, ProcessFlags, call_roll, start_processes
from owl3_jax.host.lifeline import LOST
from tests.xla_flags import FAST_TO_COMPILE

PROGRAM = """
import sys
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.host.distributed import ProcessFlags, start_processes
use_compilation_cache()  # first, as in train.py: it must not ask for devices
start_processes(ProcessFlags(sys.argv[1], 2, int(sys.argv[2]), timeout=120.0))
import jax
from jax.experimental.multihost_utils import process_allgather
print(jax.process_count(), process_allgather(jax.process_index()).tolist())
"""


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def roll(address: str, present: list[int], processes: int, timeout: float = 1.0, names: tuple[str, ...] = ()) -> list[str]:
    """The error that each of the present processes gets; empty if none."""

    def call(process: int) -> str:
        try:
            call_roll(Job(address, processes, process, names), timeout)
        except DistributedError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(call, present))


def test_two_processes_become_one_run(address):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "XLA_FLAGS": FAST_TO_COMPILE}
    commands = [[sys.executable, "-c", PROGRAM, address, str(process)] for process in range(2)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate(timeout=240)[0].splitlines() for process in running]
    assert [lines[-1] for lines in printed] == ["2 [0, 1]"] * 2  # before it, words of the library that connects them


ERROR_PROGRAM = """
import sys, threading
from owl3_jax.host.distributed import ProcessFlags, start_processes
with start_processes(ProcessFlags(sys.argv[1], 2, int(sys.argv[2]), timeout=120.0)):
    threading.Thread(target=threading.Event().wait).start()  # as one of orbax, which waits for the others' part of a save
    if sys.argv[2] == sys.argv[3]:
        sys.exit("error: no room")
    threading.Event().wait()
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_with_an_error_ends_though_a_thread_of_it_waits_for_others(address, failing):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "XLA_FLAGS": FAST_TO_COMPILE}
    commands = [[sys.executable, "-c", ERROR_PROGRAM, address, str(process), str(failing)] for process in range(2)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == ([1, LOST] if failing == 0 else [LOST, 1])
    assert f"process {failing} has ended with an error: SystemExit: error: no room" in errors[1 - failing]
    assert "error: no room" in errors[failing]


SHARDING_PROGRAM = """
import sys
from owl3_jax.host.distributed import ProcessFlags, start_processes
start_processes(ProcessFlags(sys.argv[1], 2, int(sys.argv[2]), timeout=120.0))
import jax
import numpy as np
from owl3_jax.config import MeshConfig
from owl3_jax.sharding import make_mesh, own_rows, shard_batch
from tests.tiny import single, stack
mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=int(sys.argv[3])))
own = own_rows(mesh, 4)
rows = [single(5, [0], seed=row) for row in range(4)]
batch, whole = shard_batch(stack([rows[row] for row in own]), mesh), stack(rows)
assert batch.source_ids is whole.source_ids is None
for x, expected in zip(batch[:-1], whole[:-1]):
    assert x.shape == expected.shape
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])
print(*own)
"""


@pytest.mark.parametrize(("tensor", "parts"), [(1, ["0 1", "2 3"]), (4, ["0 1 2 3"] * 2)])
def test_each_process_makes_the_rows_that_its_devices_hold(address, tensor, parts):
    """Two processes of two devices each: of their own rows, or where `tensor` goes over both of the same ones."""
    flags = {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {FAST_TO_COMPILE}",
    }
    commands = [[sys.executable, "-c", SHARDING_PROGRAM, address, str(process), str(tensor)] for process in range(2)]
    running = [subprocess.Popen(command, env=os.environ | flags, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=240)[0].splitlines()[-1:] for process in running] == [[part] for part in parts]


def test_all_are_there(address):
    assert roll(address, [2, 0, 1], 3, timeout=60.0) == ["", "", ""]


def test_the_missing_are_named_in_every_process(address):
    errors = roll(address, [0, 2], 5, names=("a", "b", "c", "d", "worker 4, host-4"))
    assert len(errors) == 2 and errors[0] == errors[1]
    assert errors[0].startswith("3 of 5 processes did not start within 1 s: 1 (b), 3 (d), 4 (worker 4, host-4). Start them")
    assert roll(address, [0], 2)[0].startswith("1 of 2 processes did not start within 1 s: 1. Start them")


def test_without_process_0_its_address_is_named(address):
    (error,) = roll(address, [1], 2)
    assert error.startswith(f"process 0 could not be reached at {address} within 1 s")


def test_strangers_are_not_counted(address, monkeypatch):
    monkeypatch.setattr(distributed, "_PATIENCE", 0.2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        errors = pool.submit(roll, address, [0], 2, 2.0)
        other_run = pool.submit(roll, address, [1], 3, 2.0)
        time.sleep(0.5)
        for words in (b"GET / HTTP/1.1\n", b"process 7 of 2\n", b"\xff\n", b""):
            with socket.create_connection(("127.0.0.1", int(address.split(":")[1]))) as stranger:
                stranger.sendall(words)
        assert "1 of 2 processes did not start" in errors.result()[0]
        assert "has another number of processes than 3" in other_run.result()[0]


def test_a_port_that_is_taken_is_an_error(address):
    with socket.create_server(("", int(address.split(":")[1]))):
        assert "cannot listen on port" in roll(address, [0], 2)[0]


@pytest.mark.parametrize(
    "flags",
    [
        ProcessFlags(coordinator="host:1"),
        ProcessFlags(processes=2, process=0),
        ProcessFlags("host:1", processes=2, process=2),
        ProcessFlags("host", processes=2, process=0),
    ],
)
def test_flags_that_tell_only_a_part_are_an_error(flags):
    with pytest.raises(DistributedError, match="need an address host:port"):
        start_processes(flags)


def test_a_single_process_starts_nothing(monkeypatch):
    monkeypatch.setattr(distributed, "Lifeline", lambda *args: None)
    monkeypatch.setattr(distributed, "_leaving_in_order", lambda lifeline, process: contextlib.nullcontext())
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *args, **options: pytest.fail("was called"))
    start_processes(ProcessFlags())
    start_processes(ProcessFlags("nowhere:1", processes=1, process=0))


class Pod:
    """A TPU pod of two slices with two workers each."""

    slices = 2
    is_env_present = staticmethod(lambda: True)
    get_process_count = classmethod(lambda cls: 2 * cls.slices)
    get_process_id = staticmethod(lambda: 1)
    get_coordinator_address = staticmethod(lambda timeout, port: f"host-0:{port or 8482}")
    _get_worker_list_in_slice = staticmethod(lambda: ["host-0", "host-1"])


class Slice(Pod):
    slices = 1


@pytest.mark.parametrize(("cluster", "names"), [(Slice, ("worker 0, host-0", "worker 1, host-1")), (Pod, None)])
def test_a_tpu_pod_is_found_and_environment_variables_come_first(monkeypatch, cluster, names):
    called = []
    monkeypatch.setattr(distributed, "tpu_clusters", lambda: (cluster,))
    monkeypatch.setattr(distributed, "call_roll", lambda job, timeout: called.append((job, timeout)))
    monkeypatch.setattr(distributed, "Lifeline", lambda *args: None)
    monkeypatch.setattr(distributed, "_leaving_in_order", lambda lifeline, process: contextlib.nullcontext())
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda *args, **options: called.append(args))
    start_processes(ProcessFlags(timeout=7.0))
    names = names or tuple(f"worker {w} of slice {s}" for s in range(2) for w in range(2))
    assert called == [(Job("host-0:8482", len(names), 1, names), 7.0), ("host-0:8482", len(names), 1)]
    for name, value in {"JAX_COORDINATOR_ADDRESS": "[::1]:99", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    start_processes(ProcessFlags(process=6))
    assert called[2:] == [(Job("[::1]:99", 8, 6), 300.0), ("[::1]:99", 8, 6)]
    assert called[2][0].address == ("::1", 99)
