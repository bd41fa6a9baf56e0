"""One decoding worker, from the server's side: starting it, asking it, doubting what it says."""

import asyncio
import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

import owl3_jax
from owl3_jax.inference.feature_cache import key_of
from owl3_jax.serving.decode_limits import REFUSAL_CODES, DecodeLimits, DecodeRefused, RefusalCode, allocated_bytes
from owl3_jax.serving.decode_request import Request
from owl3_jax.serving.decode_wire import Received, WireError, receive, send
from owl3_jax.serving.generation import View

_WORKER = "owl3_jax.serving.decode_worker"
_MOST_REQUESTS = 1000  # of one worker
_MAX_SAID = 1 << 16  # bytes of JSON from a worker
_MAX_TOKENS = 1 << 22  # of a prompt: more than any model reads
_MAX_MESSAGE = 1000  # characters of a refusal

# The rest of the environment may hold keys, which are no business of a process that reads strangers' files.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ")
# Each thread has a stack and an arena of its own, which count as memory; there are as many workers as are to run at once.
_FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}


class DecoderDiedError(RuntimeError):
    """A worker has ended, or says what it must not say; either way it is of no more use."""


class DecoderStartError(RuntimeError):
    """A worker cannot work; the message says why. It may name paths: it is for who runs the server."""


@dataclasses.dataclass(frozen=True)
class DecodedPrompt:
    """What the engine needs of a prompt."""

    input_ids: list[int]
    image_starts: list[int]  # index of the first token of each placeholder
    views: list[View]  # one for each of them


class DecoderProcess:
    """A worker. `greet` and `decode` block, until `kill` at the latest: call them in a thread, one at a time."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, limits: DecodeLimits) -> None:
        self._process, self._connection, self._limits = process, connection, limits
        self._image_size = self._vocab_size = 0  # until `greet`
        self._served = 0  # requests
        self._most_at_rest = 0  # bytes, above which it is worn; from `greet` on
        self.was_killed = False  # by `kill`

    @classmethod
    async def launch(cls, limits: DecodeLimits) -> "DecoderProcess":
        """Starts a process, which waits for `greet`. Raises DecoderStartError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", _WORKER, str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    env=_environment(os.environ),
                    start_new_session=True,  # Ctrl-C is for the server, which may want to finish what is under way
                )
        except OSError as error:
            ours.close()
            raise DecoderStartError(f"no process can be started: {error}") from error
        except BaseException:
            ours.close()
            raise
        return cls(process, ours, limits)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once its end has been noticed."""
        return self._process.returncode is None

    @property
    def is_worn(self) -> bool:
        """Whether another one should take its place, now that it is idle: libraries in C leak."""
        return self._served >= _MOST_REQUESTS or allocated_bytes(self.pid) > self._most_at_rest

    @property
    def fate(self) -> str:
        """How it has ended, for a log."""
        code = self._process.returncode
        return "running" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"

    def greet(self, settings: Mapping[str, object]) -> None:
        """Has the worker load its processor. Raises DecoderStartError.

        `settings`: see `owl3_jax.serving.decode_worker`; the limits are added.
        """
        try:
            send(self._connection, {**settings, "limits": dataclasses.asdict(self._limits)})
            said = self._receive(0).said
        except (DecoderDiedError, OSError) as error:
            raise DecoderStartError(f"it ended before it was ready: {error}") from error
        if "failed" in said:
            raise DecoderStartError(str(said["failed"]))
        self._most_at_rest = (allocated_bytes(self.pid) + self._limits.max_bytes_of_memory) // 2
        # It has not read anything of a stranger's, so these are true.
        self._image_size, self._vocab_size = cast(int, said["image_size"]), cast(int, said["vocab_size"])

    def decode(self, request: Request) -> DecodedPrompt:
        """Has the worker decode a request. Raises DecodeRefused or DecoderDiedError."""
        self._served += 1
        try:
            send(self._connection, {"messages": request.messages}, request.blobs)
            ids, starts = self._prompt()
            views = list[View]()
            for index in range(len(starts)):
                views.append(self._view(index, views))
            return DecodedPrompt(ids, starts, views)
        except OSError as error:
            raise DecoderDiedError(str(error)) from error

    def kill(self) -> None:
        """Ends the process, and whatever `greet` or `decode` waits for. On the event loop."""
        if self.is_alive:
            self._process.kill()
        self.was_killed = True
        with contextlib.suppress(OSError):  # it has ended already
            self._connection.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> None:
        """Returns when the process has ended."""
        await self._process.wait()

    def close(self) -> None:
        """Frees what is left of an ended process, when no thread is in `greet` or `decode` any more."""
        self._connection.close()

    def _receive(self, max_blobs: int) -> Received:
        try:
            received = receive(self._connection, max_said=_MAX_SAID, max_blobs=max_blobs)
        except WireError as error:
            raise DecoderDiedError(str(error)) from error
        if received is None:
            raise DecoderDiedError("it closed its socket")
        return received

    def _answer(self, max_blobs: int) -> Received:
        """The next message of an answer. Raises DecodeRefused when it is a refusal."""
        received = self._receive(max_blobs)
        if "refused" not in received.said:
            return received
        code, message = received.said["refused"], received.said.get("message")
        _expect(code in REFUSAL_CODES and isinstance(message, str), "a refusal of no known kind")
        raise DecodeRefused(cast(RefusalCode, code), cast(str, message)[:_MAX_MESSAGE])

    def _prompt(self) -> tuple[list[int], list[int]]:
        said, blobs = self._answer(4 * (_MAX_TOKENS + self._limits.max_images))
        _expect(len(blobs) == 2 and all(len(blob) % 4 == 0 for blob in blobs), "a prompt of another form")
        ids, starts = (np.frombuffer(blob, "<i4").astype(np.int64) for blob in blobs)
        _expect(said.get("images") == len(starts) <= self._limits.max_images, "another number of images")
        _expect(bool(np.all((ids >= 0) & (ids < self._vocab_size))), "tokens that there are not")
        _expect(bool(np.all(np.diff(starts, prepend=-1, append=len(ids)) > 0)), "images outside the prompt")
        return ids.tolist(), starts.tolist()

    def _view(self, index: int, before: Sequence[View]) -> View:
        shape = (self._image_size, self._image_size, 3)
        size = int(np.prod(shape))
        said, blobs = self._answer(size)
        same = said.get("same_as")
        if said == {"view": index, "same_as": same} and isinstance(same, int) and 0 <= same < index and not blobs:
            return before[same]
        _expect(said == {"view": index} and [len(blob) for blob in blobs] == [size], "a view of another form")
        pixels = np.frombuffer(blobs[0], np.uint8).reshape(shape)
        # Here, not in the worker: with a false key it could put one image in another's place for all who ask later.
        return View(key_of(pixels), pixels)


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise DecoderDiedError(f"it sent {otherwise}")


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in ours.items() if name in _KEPT_VARIABLES or name.startswith("PYTHON")}
    package = str(Path(owl3_jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, kept.get("PYTHONPATH", "")]))
    return kept | _FEW_THREADS | {"PYTHONPATH": path}
