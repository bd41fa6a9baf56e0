"""Keeps a number of decoding workers running: one that ends is replaced at once, or, where that fails, after a while."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from owl3_jax.serving.decode_limits import DecodeLimits
from owl3_jax.serving.decoder_process import DecoderProcess, DecoderStartError

_START_TIMEOUT = 120.0  # seconds until a worker is ready
_BACK_OFF, _LONGEST_BACK_OFF = 0.5, 30.0  # seconds after a worker that did not start

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class DecoderPool:
    """The workers. All methods belong on one event loop.

    Args:
        workers: how many.
        limits: of each.
        settings: of all, for `DecoderProcess.greet`.
        on_idle: called when a worker can be taken.
        on_outage: called when a worker does not start and there is no other.
    """

    def __init__(
        self,
        workers: int,
        limits: DecodeLimits,
        settings: Mapping[str, object],
        on_idle: Callable[[], None],
        on_outage: Callable[[], None],
    ) -> None:
        self._workers, self._limits, self._settings = workers, limits, settings
        self._on_idle, self._on_outage = on_idle, on_outage
        self._processes: set[DecoderProcess] = set()  # until they have ended
        self._idle: list[DecoderProcess] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decoder")  # each waits for one worker
        self._closing = asyncio.Event()
        self.in_use = self.started = self.died = 0

    @property
    def is_closing(self) -> bool:
        """From the beginning of `close` on."""
        return self._closing.is_set()

    async def start(self) -> None:
        """Returns when all workers are ready. Raises DecoderStartError when one does not start; then none is left."""
        starting = [self.spawn(self._add()) for _ in range(self._workers)]
        try:
            done, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            await self.close()
            raise
        if errors := [error for task in done if (error := task.exception())]:
            await self.close()
            await asyncio.gather(*starting, return_exceptions=True)  # the others' errors only follow from closing
            raise errors[0]

    @property
    def has_idle(self) -> bool:
        """Whether `take` has something to give."""
        return any(each.is_alive for each in self._idle)

    def take(self) -> DecoderProcess | None:
        """An idle worker, if there is one; `give_back` or `replace` follows."""
        process = next((each for each in self._idle if each.is_alive), None)
        if process:
            self._idle.remove(process)
            self.in_use += 1
        return process

    def give_back(self, process: DecoderProcess) -> None:
        """Makes a worker idle again."""
        self.in_use -= 1
        self._make_idle(process)

    async def replace(self, process: DecoderProcess, *, has_died: bool) -> None:
        """Ends a worker that was taken, and starts another. `has_died`: nobody here has ended it."""
        self.in_use -= 1
        await self._replace(process, has_died=has_died)

    async def close(self) -> None:
        """Ends all workers and waits for all tasks; a second time does nothing."""
        self._closing.set()
        for process in self._processes:
            process.kill()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._threads.shutdown()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def in_thread(self, function: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
        """Calls a method of a worker that blocks."""
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _make_idle(self, process: DecoderProcess) -> None:
        self._idle.append(process)
        self._on_idle()

    async def _add(self) -> None:
        """Starts one more worker. Raises DecoderStartError."""
        process = await DecoderProcess.launch(self._limits)
        self._processes.add(process)
        if self.is_closing:
            process.kill()
        greeting = self.in_thread(process.greet, self._settings)
        await asyncio.wait({greeting}, timeout=_START_TIMEOUT)
        if not greeting.done():
            process.kill()
            await asyncio.wait({greeting})
        if error := greeting.exception():
            await self._end(process)
            raise error
        self.started += 1
        self.spawn(self._watch(process))
        self._make_idle(process)

    async def _watch(self, process: DecoderProcess) -> None:
        """Until the worker ends. One that ends while it is taken is the business of who took it."""
        await process.wait()
        if process in self._idle:
            self._idle.remove(process)
            await self._replace(process, has_died=not process.was_killed)

    async def _replace(self, process: DecoderProcess, *, has_died: bool) -> None:
        """Ends a worker and starts another, again and again until one starts."""
        await self._end(process)
        if has_died:
            self.died += 1
            _log.warning("decoder %d has died (%s)", process.pid, process.fate)
        pause = _BACK_OFF
        while not self.is_closing:
            try:
                await self._add()
                return
            except DecoderStartError as error:
                _log.error("a decoder does not start; another attempt follows in %g s: %s", pause, error)
            if not self._idle and not self.in_use:
                self._on_outage()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            pause = min(2 * pause, _LONGEST_BACK_OFF)

    async def _end(self, process: DecoderProcess) -> None:
        process.kill()
        await process.wait()
        process.close()
        self._processes.discard(process)
