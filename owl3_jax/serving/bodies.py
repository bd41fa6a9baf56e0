"""Reads the bodies of requests, within limits: bytes of one, bytes of all, and time."""

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator

from starlette.requests import Request

from owl3_jax.serving.errors import ApiError, too_many

_MIB = 2**20
_SMALL = 64  # as many times smaller than the largest


@dataclasses.dataclass(frozen=True)
class BodyLimits:
    """Of the bodies of requests."""

    bytes_each: int = 64 * _MIB  # base64 is a third more than what it stands for
    bytes_all: int = 1024 * _MIB  # that are in memory at the same time
    seconds: float = 60.0  # from the end of the headers to that of the body


class Bodies:
    """The bodies that are in memory."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._of_clients = Counter[str]()

    @property
    def bytes(self) -> int:
        """Of all bodies that are being read or used."""
        return self._bytes

    @contextlib.asynccontextmanager
    async def read(self, request: Request, client: str) -> AsyncIterator[bytearray]:
        """The whole body, which counts until the context is left.

        One client's bodies may have half of the bytes of all. Small ones are taken when larger ones no longer are.

        Raises ApiError: it is not JSON by its headers, too large, too slow, or there are too many others. Raises
        starlette's ClientDisconnect when the client leaves.
        """
        _require_json(request)
        self._require_small(request.headers.get("content-length"))
        body = bytearray()
        try:
            await self._fill(body, request, client)
            yield body
        finally:
            self._count(-len(body), client)

    async def _fill(self, body: bytearray, request: Request, client: str) -> None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._count(len(chunk), client)
                    self._require_room(len(body), client)
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.seconds:g} s"
            raise ApiError(408, "request_timeout", message) from None

    def _require_small(self, length: str | None) -> None:
        if length is not None and length.isdecimal() and int(length) > self._limits.bytes_each:
            raise self._too_large()

    def _count(self, size: int, client: str) -> None:
        self._bytes += size
        self._of_clients[client] += size
        if not self._of_clients[client]:
            del self._of_clients[client]

    def _require_room(self, length: int, client: str) -> None:
        limits = self._limits
        if length > limits.bytes_each:
            raise self._too_large()
        reserve = limits.bytes_all // 8 if length <= limits.bytes_each // _SMALL else 0
        if self._of_clients[client] > limits.bytes_all // 2 + reserve or self._bytes > limits.bytes_all + reserve:
            raise too_many("the server has no memory for this body beside those of other requests", retry_after=1.0)

    def _too_large(self) -> ApiError:
        message = f"the body has more than the {self._limits.bytes_each} bytes that this server takes"
        return ApiError(413, "request_too_large", message)


def _require_json(request: Request) -> None:
    """A page of another site can make a browser send anything else without asking this server first."""
    kind, _, options = request.headers.get("content-type", "").partition(";")
    charset = options.lower().replace(" ", "").replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise ApiError(415, "unsupported_media_type", "the body must be JSON in UTF-8: Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "the body must not be compressed")
