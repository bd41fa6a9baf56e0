"""How many bytes of media requests hold at the same time, before these are decoded."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from owl3_jax.serving.errors import ApiError, too_many

_MIB = 2**20
_SMALL = 64  # as many times smaller than the largest


@runtime_checkable
class Charge(Protocol):
    """Counts bytes that have arrived."""

    def __call__(self, size: int) -> None:
        """Raises ApiError if there are too many."""


def free_of_charge(size: int) -> None:
    """A `Charge` without a limit."""


@dataclasses.dataclass
class MediaBudget:
    """Limits of the media of one request, and of all together: half of that for one client, and a reserve for small ones."""

    bytes_each: int = 512 * _MIB
    bytes_all: int = 2048 * _MIB
    held: int = 0  # by all
    of_clients: Counter[str] = dataclasses.field(default_factory=Counter)

    @contextlib.contextmanager
    def account(self, client: str) -> Iterator[Charge]:
        """What a client's request is charged inside the context counts until it ends."""
        own = 0

        def charge(size: int) -> None:
            nonlocal own
            own += size
            self._count(size, client)
            if own > self.bytes_each:
                message = f"the images and videos have more than the {self.bytes_each} bytes that this server takes"
                raise ApiError(413, "request_too_large", message)
            reserve = self.bytes_all // 8 if own <= self.bytes_each // _SMALL else 0
            if self.held > self.bytes_all + reserve or self.of_clients[client] > self.bytes_all // 2 + reserve:
                raise too_many("the server has no memory for these images and videos beside others", retry_after=1.0)

        try:
            yield charge
        finally:
            self._count(-own, client)

    def _count(self, size: int, client: str) -> None:
        self.held += size
        self.of_clients[client] += size
        if not self.of_clients[client]:
            del self.of_clients[client]
