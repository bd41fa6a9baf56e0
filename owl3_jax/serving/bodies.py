"""Reads the bodies of requests, within limits: bytes of one, bytes of all, and time."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from starlette.requests import Request

from owl3_jax.serving.budget import Budget, Charge
from owl3_jax.serving.errors import ApiError

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
        self._budget = Budget("a body", bytes_each=limits.bytes_each, bytes_all=limits.bytes_all)

    @property
    def bytes(self) -> int:
        """Of all bodies that are being read or used."""
        return self._budget.held

    @contextlib.asynccontextmanager
    async def read(self, request: Request, client: str) -> AsyncIterator[bytearray]:
        """The whole body, which counts until the context is left.

        Raises ApiError: it is not JSON by its headers, too large, too slow, or there are too many others. Raises
        starlette's ClientDisconnect when the client leaves.
        """
        _require_json(request)
        length = request.headers.get("content-length")
        if length is not None and length.isdecimal() and int(length) > self._limits.bytes_each:
            raise self._budget.too_large()
        body = bytearray()
        with self._budget.account(client) as charge:
            await self._fill(body, request, charge)
            yield body

    async def _fill(self, body: bytearray, request: Request, charge: Charge) -> None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    body += chunk
                    charge(len(chunk))
        except TimeoutError:
            message = f"the body did not arrive within {self._limits.seconds:g} s"
            raise ApiError(408, "request_timeout", message) from None


def _require_json(request: Request) -> None:
    """A page of another site can make a browser send anything else without asking this server first."""
    kind, _, options = request.headers.get("content-type", "").partition(";")
    charset = options.lower().replace(" ", "").replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise ApiError(415, "unsupported_media_type", "the body must be JSON in UTF-8: Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_media_type", "the body must not be compressed")
