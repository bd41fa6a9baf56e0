"""Starting a run's processes on several hosts, with an error that names the missing ones.

`jax.distributed` aborts a process that waited in vain and does not say for which others. So all processes first report to
process 0, at the address that JAX will use afterwards, and get the list of missing processes from it.
"""

import contextlib
import dataclasses
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from owl3_jax.host.lifeline import Lifeline
from owl3_jax.private_jax import hosts_of_slice, tpu_clusters

_ENVIRONMENT = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}

_RETRY = 0.5  # seconds between attempts to reach process 0
_PATIENCE = 5.0  # seconds for a connection to identify itself, and for process 0 to answer after its timeout


class DistributedError(RuntimeError):
    """The processes of a run did not find each other; the message names the missing ones."""


@dataclasses.dataclass(frozen=True)
class ProcessFlags:
    """The processes of a run, one for each host. Without them: those of the TPU pod, or only this one."""

    coordinator: str | None = None  # host:port of process 0; or environment variable JAX_COORDINATOR_ADDRESS
    processes: int | None = None  # number of processes; or JAX_NUM_PROCESSES
    process: int | None = None  # index of this process, from 0; or JAX_PROCESS_ID
    timeout: float = 300.0  # seconds to wait for all processes
    silence: float = 60.0  # seconds after which a process that shows no sign of life counts as hung, and all end


class Job(NamedTuple):
    """The processes of a run, and where they meet."""

    coordinator: str  # host:port of process 0
    processes: int
    process: int  # this one
    names: tuple[str, ...] = ()  # of the hosts, by process, if known

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def start_processes(flags: ProcessFlags) -> contextlib.AbstractContextManager[None]:
    """Joins the processes of a run into one; does nothing when there is only this one. Call it before any device is used.

    From then on, all end when one of them ends with an error, is killed or hangs: see `Lifeline`. What this returns is a
    context that they leave together, once all have come to its end.

    Raises DistributedError when they do not all start in time, or the flags do not specify where they meet.
    """
    job = _given_job(flags, os.environ) or _tpu_pod(flags.timeout)
    if job is None or job.processes == 1:
        return contextlib.nullcontext()
    lifeline = Lifeline(job.process, call_roll(job, flags.timeout), flags.silence, job.names)
    # JAX would abort all processes some time after one has gone; the lifeline does so at once, and says which.
    jax.config.update("jax_enable_recoverability", True)
    jax.distributed.initialize(
        job.coordinator,
        job.processes,
        job.process,
        initialization_timeout=round(flags.timeout),
        heartbeat_timeout_seconds=max(100, round(4 * flags.silence)),
    )
    return _leaving_in_order(lifeline, job.process)


@contextlib.contextmanager
def _leaving_in_order(lifeline: Lifeline, process: int) -> Iterator[None]:
    """Process 0 leaves last: the others abort when its coordination service ends before they have left that.

    With an error this process ends soon, though threads of libraries may still wait for others.
    """
    try:
        with lifeline:
            yield
            lifeline.await_others()
            jax.distributed.shutdown()
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):
            # When process 0 has gone, JAX aborts the others: it ends after them, and they end before it does.
            patience = 2 * _PATIENCE if process == 0 else _PATIENCE / 2
            threading.Thread(target=_end_after, args=(patience,), daemon=True).start()
        raise


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def call_roll(job: Job, timeout: float) -> dict[int, socket.socket]:
    """Returns when all processes have reported: the connections of process 0 to all others, of another one to process 0.

    Raises DistributedError, in each that has reported, when others have not after `timeout` seconds.
    """
    missing, connections = _await_reports(job, timeout) if job.process == 0 else _report(job, timeout)
    if missing:
        for connection in connections.values():
            connection.close()
        names = ", ".join(f"{number} ({job.names[number]})" if job.names else str(number) for number in missing)
        raise DistributedError(
            f"{len(missing)} of {job.processes} processes did not start within {timeout:g} s: {names}. Start them with the "
            f"same command, check whether they ended with an error, and whether they can reach {job.coordinator}"
        )
    return connections


def _await_reports(job: Job, timeout: float) -> tuple[list[int], dict[int, socket.socket]]:
    """The processes that do not report to this one, process 0, in time; it sends that list to the others. Their connections."""
    deadline, present = time.monotonic() + timeout, dict[int, socket.socket]()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(job))
        while len(present) < job.processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                connection = server.accept()[0]
                if number := _read_number(connection, job.processes):
                    present[number] = connection
                else:
                    connection.close()
        missing = [number for number in range(1, job.processes) if number not in present]
        for connection in present.values():
            with contextlib.suppress(OSError):  # it has ended in the meantime, which JAX will notice
                connection.sendall(f"missing {missing}\n".encode())
    return missing, present


def _listen(job: Job) -> socket.socket:
    host, port = job.address
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise DistributedError(f"process 0 cannot listen on port {port} of {host}: {error}; choose another port") from error


def _read_number(connection: socket.socket, processes: int) -> int | None:
    """Which process has connected; None if it is not of this run, or is this one."""
    connection.settimeout(_PATIENCE)
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        found = re.fullmatch(rb"process (\d+) of (\d+)\n", lines.readline(100))
        if found and int(found[2]) == processes and 0 < int(found[1]) < processes:
            return int(found[1])
    return None


def _report(job: Job, timeout: float) -> tuple[list[int], dict[int, socket.socket]]:
    """Reports this process to process 0; returns its answer, the missing ones, once all are there or its timeout is over."""
    connection = _connect(job, timeout)
    connection.settimeout(timeout + _PATIENCE)
    try:
        connection.sendall(f"process {job.process} of {job.processes}\n".encode())
        answer = _read_line(connection)
    except OSError as error:
        connection.close()
        raise DistributedError(f"process 0 at {job.coordinator} did not answer: {error}") from error
    if not answer:
        connection.close()
        raise DistributedError(
            f"process 0 at {job.coordinator} ended, or has another number of processes than {job.processes}: see its output"
        )
    return [int(number) for number in re.findall(r"\d+", answer)], {0: connection}


def _read_line(connection: socket.socket) -> str:
    """A line, and nothing of what follows it; empty if the connection is closed first."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return ""
        line += byte
    return line.decode()


def _connect(job: Job, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(job.address, timeout=max(_RETRY, deadline - time.monotonic()))
        except OSError as error:
            if time.monotonic() + _RETRY > deadline:
                raise DistributedError(
                    f"process 0 could not be reached at {job.coordinator} within {timeout:g} s ({error}): start it with the "
                    "same command, and let the other hosts reach that port"
                ) from error
            time.sleep(_RETRY)


def _given_job(flags: ProcessFlags, environment: Mapping[str, str]) -> Job | None:
    """The job given by the flags, or else by environment variables."""
    given = {name: getattr(flags, name) for name in _ENVIRONMENT}
    given = {name: environment.get(_ENVIRONMENT[name]) if value is None else value for name, value in given.items()}
    if set(given.values()) == {None}:
        return None
    try:
        job = Job(str(given["coordinator"]), int(given["processes"]), int(given["process"]))
        valid = 0 <= job.process < job.processes and bool(all(job.address))
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise DistributedError(
            "the processes of a run need an address host:port, their number, and the index of this one, below that number; "
            f"got {given}"
        )
    return job


def _tpu_pod(timeout: float) -> Job | None:
    """The hosts of the TPU slices that this host belongs to; None elsewhere."""
    cluster = next((cluster for cluster in tpu_clusters() if cluster.is_env_present()), None)
    if cluster is None or cluster.get_process_count() == 1:
        return None
    workers, processes = hosts_of_slice(cluster), cluster.get_process_count()
    where = [divmod(number, len(workers)) for number in range(processes)]
    own_slice = processes == len(workers)  # names of other slices' workers are not known
    names = tuple(f"worker {w}, {workers[w]}" if own_slice else f"worker {w} of slice {s}" for s, w in where)
    address = cluster.get_coordinator_address(round(timeout), os.environ.get("JAX_COORDINATOR_PORT"))
    return Job(address, processes, cluster.get_process_id(), names)
