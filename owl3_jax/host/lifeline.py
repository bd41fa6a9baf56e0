"""Whether the processes of a run are all still there, and what becomes of the others when one is not.

Every process keeps a connection to process 0, over which both say each second that they are there. A process that ends
without a goodbye closes its connection, and one that hangs says nothing any more. Process 0 tells the others which one it was,
and all end with the exit status `LOST`, with which a supervisor starts the run again. Without this they would wait in a
collective operation until a time-out of the library's, which names nobody.
"""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from owl3_jax.host.workers import kill_children

LOST = 75  # EX_TEMPFAIL of sysexits.h: another attempt may succeed

_EVERY = 1.0  # seconds between signs of life
_LATE = 10.0  # seconds by which a busy machine may notice something later
_GRACE = 5.0  # seconds in which a process may report an error of its own, after another one has
_ALIVE, _GOODBYE, _LOST, _FAILED = b"alive", b"goodbye", b"lost", b"failed"


def end_process(message: str) -> None:
    """Ends this process with `LOST`, whatever its other threads wait for, and those that it has started."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    kill_children()
    os._exit(LOST)


@contextlib.contextmanager
def time_limit(seconds: float, message: str, on_timeout: Callable[[str], None] = end_process) -> Iterator[None]:
    """Ends this process, by `on_timeout`, when what is inside the context takes longer; without a limit if `seconds` is 0.

    For what can wait for ever, like a disk that has gone: then a process shows signs of life, and the others wait for it. Time
    in which the process is suspended does not count.
    """
    done = threading.Event()
    if seconds:
        threading.Thread(target=_await_timeout, args=(seconds, message, on_timeout, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _await_timeout(seconds: float, message: str, on_timeout: Callable[[str], None], done: threading.Event) -> None:
    while seconds > 0:  # second by second: after a suspension one of them is over, not all
        tick = min(seconds, 1.0)
        if done.wait(tick):
            return
        seconds -= tick
    on_timeout(message)


class Lifeline:
    """The connections of one process: process 0's to all others, another one's to process 0. A context manager.

    Left without an exception, or at the end of the interpreter, it says goodbye; left with one, it tells the others, which end.

    Args:
        process: this one.
        peers: the connections, by process; they are closed at the end.
        silence: seconds after which a process that says nothing counts as hung. Time in which this process is suspended does
            not count: then it could not have heard anything.
        names: of the hosts, by process, if known.
        on_loss: gets a message that names the process.
    """

    def __init__(
        self,
        process: int,
        peers: Mapping[int, socket.socket],
        silence: float,
        names: Sequence[str] = (),
        on_loss: Callable[[str], None] = end_process,
    ) -> None:
        self._process, self._silence, self._names, self._on_loss = process, silence, names, on_loss
        self._peers = {number: _Peer(connection) for number, connection in peers.items()}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> "Lifeline":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError):  # of an operation with others, most likely
            self._wait_for_loss()
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.close()
        else:
            what = f"{type(error).__name__}: {error}".encode("utf-8", "replace").replace(b"\n", b" ")[:500]
            self._leave(_FAILED + b" %d " % self._process + what)

    def await_others(self) -> None:
        """In process 0: waits until all others have said goodbye."""
        if self._process == 0:
            self._thread.join()

    def close(self) -> None:
        """Says goodbye; a second time does nothing."""
        self._leave(_GOODBYE)

    def _wait_for_loss(self) -> None:
        """Waits as long as it may take until the loss of a process is noticed, after which this one ends."""
        self._ended.wait(self._silence + _LATE)

    def _leave(self, word: bytes) -> None:
        atexit.unregister(self.close)
        if self._ended.is_set():
            return
        self._ended.set()
        self._tell(word, self._peers)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for peer in self._peers.values():
            peer.connection.close()

    def _tell(self, word: bytes, numbers: Sequence[int] | Mapping[int, object]) -> None:
        with self._lock:
            for number in numbers:
                with contextlib.suppress(OSError):  # it has ended: `_watch` notices that
                    self._peers[number].connection.sendall(word + b"\n")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                peer.connection.settimeout(_EVERY)
                selector.register(peer.connection, selectors.EVENT_READ, number)
            said = -_EVERY
            now = time.monotonic()
            while not self._ended.is_set() and selector.get_map():
                before, now = now, time.monotonic()
                for key in selector.get_map().values():
                    self._peers[key.data].silent += min(now - before, _EVERY)
                for key, _ in selector.select(_EVERY / 4):
                    if not self._listen(key.data):
                        selector.unregister(key.fileobj)
                if now - said >= _EVERY:
                    said = now
                    self._tell(_ALIVE, [key.data for key in selector.get_map().values()])
                for key in list(selector.get_map().values()):
                    self._require_sign(key.data)

    def _listen(self, number: int) -> bool:
        """Takes what a peer says; returns whether it may say more."""
        peer = self._peers[number]
        try:
            data = peer.connection.recv(4096)
        except TimeoutError:
            return True
        except OSError:
            data = b""
        if not data:
            self._lose(number, "has ended: see its output")
            return False
        peer.silent = 0.0
        *lines, peer.rest = (peer.rest + data).split(b"\n")
        for line in lines:
            word, _, text = line.partition(b" ")
            if word == _GOODBYE:
                return False
            if word == _FAILED:
                failed, _, what = text.decode("utf-8", "replace").partition(" ")
                self._lose(int(failed), f"has ended with an error: {what}", grace=_GRACE)
                return False
            if word == _LOST:
                self._end(text.decode("utf-8", "replace"))
                return False
        return True

    def _require_sign(self, number: int) -> None:
        silent = self._peers[number].silent
        if silent > self._silence:
            self._lose(number, f"has not answered for {silent:.0f} s: it hangs, or its host cannot be reached")

    def _lose(self, number: int, what: str, grace: float = 0.0) -> None:
        if self._ended.is_set():
            return
        name = f" ({self._names[number]})" if number < len(self._names) else ""
        message = f"process {number}{name} {what}. All processes end; the same commands resume the run from its last checkpoint"
        self._ended.wait(grace)
        self._tell(_LOST + b" " + message.encode("utf-8", "replace"), [other for other in self._peers if other != number])
        self._end(message)

    def _end(self, message: str) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._on_loss(message)


class _Peer:
    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.silent, self.rest = connection, 0.0, b""  # `silent`: seconds since the last sign of life
