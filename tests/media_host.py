"""A web server on this machine that answers byte for byte what a test says, and a fetcher that takes it for the web."""

import asyncio
import contextlib
import ipaddress
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from owl3_jax.serving.fetch import MediaFetcher
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.media_refused import MediaRefused

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

HERE = ipaddress.ip_address("127.0.0.1")
LIMIT = 100_000  # bytes of an image
PICTURE = b"pixels" * 1000
ALLOWED = ("media.example", "other.example", "slow.example", "inside.example", "stranger.example", "*.cdn.example")
CERTIFIED = ("media.example", "other.example", "slow.example", "inside.example", "*.cdn.example")


def ok(body: bytes, *headers: str) -> bytes:
    """An answer with a body and its length."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    """An answer up to its body."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers]).encode() + b"\r\n\r\n"


def redirect(location: str, status: str = "302 Found") -> bytes:
    """An answer that sends the client elsewhere."""
    return head(f"Location: {location}", "Content-Length: 0", status=status)


class Certificate:
    """Signed by itself, for the names in `CERTIFIED`."""

    def __init__(self, folder: Path) -> None:
        self._key, self._certificate = folder / "key.pem", folder / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        names = "subjectAltName=" + ",".join(f"DNS:{name}" for name in CERTIFIED)
        usage = "keyUsage=critical,digitalSignature,keyCertSign"
        files = ["-days", "2", "-subj", "/CN=example", "-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run([*command, "-addext", names, "-addext", usage, *files], check=True, capture_output=True)

    def for_server(self) -> ssl.SSLContext:
        """What a server shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        return context

    def for_client(self) -> ssl.SSLContext:
        """Trusts this certificate alone."""
        return ssl.create_default_context(cafile=str(self._certificate))


class Host:
    """What a running server was asked."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers, self.port = dict(answers), 0
        self.connections = 0
        self.greeting = b""  # what is said instead of listening
        self.requests: list[str] = []  # the heads, in lower case

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request of a connection."""
        self.connections += 1
        if self.greeting:
            writer.write(self.greeting)
            writer.close()
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the client leaves when it likes
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request.lower())
            answer = self.answers[request.split()[1]]
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(writer)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def running(
    answers: Mapping[str, Answer], certificate: Certificate | None = None, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Host]:
    """A server; without a certificate it speaks plain HTTP."""
    host = Host(answers)
    server = await asyncio.start_server(host.serve, address, port, ssl=certificate.for_server() if certificate else None)
    async with server:
        host.port = server.sockets[0].getsockname()[1]
        yield host


def lookup(host: str) -> list[str]:
    """All hosts are this machine, but for one, whose address is another's on its network."""
    return ["10.0.0.5"] if host == "inside.example" else ["127.0.0.1"]


@contextlib.asynccontextmanager
async def fetcher(
    host: Host, certificate: Certificate, lookup: Callable[[str], Sequence[str]] = lookup, **policy: float
) -> AsyncIterator[MediaFetcher]:
    """Allows the domains above at the port of `host`, and this machine's address."""
    domains = tuple(f"{name}:{host.port}" for name in ALLOWED)
    limits: dict = {"max_image_bytes": LIMIT, "timeout": 60.0, **policy}
    async with MediaFetcher(
        MediaPolicy(domains, **limits),
        lookup=lookup,
        is_allowed_address=lambda address: address == HERE,
        ssl_context=certificate.for_client(),
    ) as made:
        yield made


def refused(raised: pytest.ExceptionInfo[MediaRefused], url: str = "") -> str:
    """The code of a refusal, which tells the client no address but one in his `url`, and no error of a library's."""
    message = str(raised.value)
    for leak in ("127.0.0.1", "10.0.0.5", "Errno", "ssl", "SSL", "aiohttp", "Cannot connect", "0x"):
        assert leak not in message or leak in url
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return raised.value.code
