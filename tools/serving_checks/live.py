"""`owl3 serve` in a process of its own, and what the system knows of it. Linux only: it reads /proc."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from prometheus_client.parser import text_string_to_metric_families

OWL3_SERVE = (sys.executable, "-c", "import owl3_jax.cli; owl3_jax.cli.main()", "serve")
_SECONDS_TO_START = 900.0  # it compiles all its programs
_SECONDS_TO_END = 90.0
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class CpuSeconds:
    """Since the start of the server: what it spends its time with."""

    event_loop: float  # the main thread: HTTP
    others: float  # the engine with the compiler's threads
    workers: float  # decoding, in those that live and those that have ended


@dataclasses.dataclass(frozen=True)
class LiveServer:
    """A server that answers. `pid` is None for one that somebody else has started elsewhere."""

    url: str
    pid: int | None = None
    log: Path | None = None

    def workers(self) -> list[int]:
        """The processes that decode."""
        return [pid for pid in self._children() if b"decode_worker" in _read(pid, "cmdline")]

    def resident_mib(self) -> float:
        """Of the server, without its workers."""
        return _status(self.pid, "VmRSS") / 1024

    def resident_mib_of_workers(self) -> float:
        """Of all that decode, counting what they share once for each."""
        return sum(_status(pid, "VmRSS") for pid in self.workers()) / 1024

    def descriptors(self) -> int:
        """Files and sockets that the server has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def cpu(self) -> CpuSeconds:
        """Where its time went."""
        if self.pid is None:
            return CpuSeconds(0.0, 0.0, 0.0)
        main = _cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))
        whole = _cpu_seconds(Path(f"/proc/{self.pid}/stat"))
        alive = sum(_cpu_seconds(Path(f"/proc/{pid}/stat")) for pid in self.workers())
        return CpuSeconds(main, whole - main, alive + _cpu_seconds(Path(f"/proc/{self.pid}/stat"), of_ended_children=True))

    def numbers(self) -> Mapping[str, float]:
        """The samples of /metrics; labels follow the name, as in `owl3_image_pages/used`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            families = text_string_to_metric_families(response.read().decode())
        return {"/".join([each.name, *each.labels.values()]): each.value for family in families for each in family.samples}

    def _children(self) -> list[int]:
        if self.pid is None:
            return []
        found: list[int] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():  # each thread has children of its own
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
        return found


@contextlib.contextmanager
def live_server(log: Path, *flags: object, command: Sequence[object] = OWL3_SERVE) -> Iterator[LiveServer]:
    """`owl3 serve FLAGS` on a port that is free, once it is ready.

    Args:
        log: the file that its log goes to.
        flags: besides the port.
        command: what takes the flags.

    Raises RuntimeError when it ends before it is ready, or does not end well after SIGTERM.
    """
    process = subprocess.Popen([*map(str, (*command, "--port", 0, *flags))], stderr=subprocess.PIPE)
    assert process.stderr is not None
    watch = _LogWatch(process.stderr, log)
    try:
        yield LiveServer(watch.url(), process.pid, log)
        if b'"event": "draining"' not in log.read_bytes():  # nobody has told it to end; a second signal would cut it off
            process.terminate()
        if code := process.wait(_SECONDS_TO_END):
            raise RuntimeError(f"the server ended with {code}; its log is {log}")
    finally:
        process.kill()
        process.wait()
        watch.join()


def failures(numbers: Mapping[str, float]) -> Mapping[str, float]:
    """Of a server's numbers, those of answers with a status of 500 or more."""
    return {
        name: value
        for name, value in numbers.items()
        if name.startswith("owl3_requests_total/") and name.split("/")[-1][0] == "5"
    }


class _LogWatch:
    """Copies a server's log to a file, and waits for its address."""

    def __init__(self, source: IO[bytes], log: Path) -> None:
        self._log, self._port = log, 0
        self._is_ready = self._is_serving = False
        self._changed = threading.Condition()
        self._has_ended = False
        self._thread = threading.Thread(target=self._copy, args=(source,), daemon=True)
        self._thread.start()

    def url(self) -> str:
        """Once requests are taken."""
        with self._changed:
            done = lambda: (self._is_ready and self._is_serving) or self._has_ended
            if not self._changed.wait_for(done, _SECONDS_TO_START) or self._has_ended:
                raise RuntimeError(f"the server does not get ready; its log is {self._log}")
        return f"http://127.0.0.1:{self._port}"

    def join(self) -> None:
        """Until the log has ended."""
        self._thread.join()

    def _copy(self, source: IO[bytes]) -> None:
        with source, self._log.open("wb") as file:
            for line in source:
                file.write(line)
                file.flush()
                self._note(line)
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _note(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            return
        with self._changed:
            if said.get("event") == "serving":
                self._is_serving, self._port = True, said["port"]
            self._is_ready |= said.get("event") == "ready"
            self._changed.notify_all()


def _read(pid: int, name: str) -> bytes:
    """A file of /proc; empty if the process has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _status(pid: int | None, field: str) -> int:
    """Of /proc/PID/status, in KiB."""
    lines = _read(pid or 0, "status").decode().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _cpu_seconds(stat: Path, *, of_ended_children: bool = False) -> float:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    first = 13 if of_ended_children else 11  # of two: in user mode, in the kernel
    return (int(fields[first]) + int(fields[first + 1])) / os.sysconf("SC_CLK_TCK")
