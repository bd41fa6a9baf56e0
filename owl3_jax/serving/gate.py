"""Whether requests are taken, and how many are under way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from owl3_jax.serving.errors import too_many, unavailable


class Gate:
    """Counts what is under way, so that the server can end once nothing is. For the event loop's thread."""

    def __init__(self, max_preparing: int) -> None:
        """`max_preparing`: most requests whose media are fetched and decoded at the same time."""
        self._max_preparing = max_preparing
        self._preparing, self._under_way = 0, 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._arriving = set[asyncio.Timeout]()
        self.is_draining = False

    def drain(self) -> None:
        """From now on new requests are refused, and those that have not arrived as a whole."""
        if self.is_draining:
            return
        self.is_draining = True
        for scope in self._arriving:
            scope.reschedule(0)

    async def wait_until_idle(self) -> None:
        """Returns as soon as nothing is under way."""
        await self._is_idle.wait()

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """Counts what is under way inside the context."""
        self._under_way += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._is_idle.set()

    def require_open(self) -> None:
        """Raises ApiError while draining."""
        if self.is_draining:
            raise unavailable("the server is shutting down")

    @contextlib.asynccontextmanager
    async def arrive(self) -> AsyncIterator[None]:
        """Around the time in which a request arrives. Raises ApiError while draining, also when that begins meanwhile."""
        self.require_open()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._arriving.add(scope)
                yield
        except TimeoutError:
            self.require_open()
            raise
        finally:
            self._arriving.discard(scope)

    @contextlib.contextmanager
    def prepare(self) -> Iterator[None]:
        """Around the time from a request's body, which may come slowly, to its queuing. Raises ApiError for one too many."""
        if self._preparing >= self._max_preparing:
            raise too_many("too many requests are being prepared", retry_after=1.0)
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1
