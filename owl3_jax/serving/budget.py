"""How many bytes requests hold at the same time: of their bodies, and of their media before these are decoded."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from owl3_jax.serving.errors import ApiError, too_many

_SMALL = 64  # as many times smaller than the largest


@runtime_checkable
class Charge(Protocol):
    """Counts bytes that have arrived."""

    def __call__(self, size: int) -> None:
        """Raises ApiError if there are too many."""


def free_of_charge(size: int) -> None:
    """A `Charge` without a limit."""


class Budget:
    """Limits of the bytes of each request, and of all together: half of these for one client, and a reserve for small ones."""

    def __init__(self, what: str, *, bytes_each: int, bytes_all: int) -> None:
        """`what` a request holds, for messages."""
        self._what, self._each, self._all = what, bytes_each, bytes_all
        self._of_clients = Counter[str]()
        self.held = 0  # bytes of all

    @contextlib.contextmanager
    def account(self, client: str) -> Iterator[Charge]:
        """What a client's request is charged inside the context counts until it ends."""
        own = 0

        def charge(size: int) -> None:
            nonlocal own
            own += size
            self._count(size, client)
            if own > self._each:
                raise self.too_large()
            reserve = self._all // 8 if own <= self._each // _SMALL else 0
            if self.held > self._all + reserve or self._of_clients[client] > self._all // 2 + reserve:
                raise too_many(f"the server has no memory for {self._what} beside those of other requests", retry_after=1.0)

        try:
            yield charge
        finally:
            self._count(-own, client)

    def too_large(self) -> ApiError:
        """What a request gets that holds more than any may."""
        return ApiError(413, "request_too_large", f"this server takes {self._each} bytes of {self._what} and no more")

    def _count(self, size: int, client: str) -> None:
        self.held += size
        self._of_clients[client] += size
        if not self._of_clients[client]:
            del self._of_clients[client]
