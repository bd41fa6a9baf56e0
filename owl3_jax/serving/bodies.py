"""Reads the bodies of requests, within limits: bytes of one, bytes of all, and time."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from starlette.requests import Request

from owl3_jax.serving.errors import ApiError, too_many

_MIB = 2**20


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

    @property
    def bytes(self) -> int:
        """Of all bodies that are being read or used."""
        return self._bytes

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The whole body, which counts until the context is left.

        Raises ApiError: it is not JSON by its headers, too large, too slow, or there are too many others. Raises
        starlette's ClientDisconnect when the client leaves.
        """
        _require_json(request)
        self._require_small(request.headers.get("content-length"))
        body = bytearray()
        try:
            await self._fill(body, request)
            yield body
        finally:
            self._bytes -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes += len(chunk)
                    self._require_room(len(body))
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.seconds:g} s"
            raise ApiError(408, "request_timeout", message) from None

    def _require_small(self, length: str | None) -> None:
        if length is not None and length.isdecimal() and int(length) > self._limits.bytes_each:
            raise self._too_large()

    def _require_room(self, length: int) -> None:
        if length > self._limits.bytes_each:
            raise self._too_large()
        if self._bytes > self._limits.bytes_all:
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
