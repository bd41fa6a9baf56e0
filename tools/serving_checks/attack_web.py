"""Attacks on what the server fetches: addresses that are not for it, hosts that lead it astray, files that are not for it.

Two web servers take part: the host of pictures, from which the server may fetch and which is hostile here, and the canary,
at an address that nothing may be fetched from, which counts who comes.
"""

import asyncio
import contextlib
import gzip
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving_checks.attack import HUNG_UP, SECRET, Attack, Target, post
from serving_checks.attacked_server import PUBLIC
from serving_checks.faults import image_body

_SSRF, _REDIRECT, _HOST, _FILE = "fetching", "redirects", "hostile host", "files"


class Web:
    """Both web servers, while they run."""

    def __init__(self, picture: bytes) -> None:
        self.visits: list[bytes] = []  # to the canary
        self.has_slow_visitor, self.has_lost_patience = threading.Event(), threading.Event()
        self.port = 0
        self._picture = picture

    @contextlib.contextmanager
    def running(self) -> Iterator["Web"]:
        """In a thread, on one port of two addresses."""
        loop, started = asyncio.new_event_loop(), threading.Event()

        async def serve() -> None:
            pictures = await asyncio.start_server(self._answer, PUBLIC, 0)
            self.port = pictures.sockets[0].getsockname()[1]
            await asyncio.start_server(self._sing, "127.0.0.1", self.port)

        def run() -> None:
            loop.run_until_complete(serve())
            started.set()
            loop.run_forever()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        started.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    async def _sing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits.append(await reader.read(1000))
        writer.write(_ok(SECRET.encode(), "text/plain"))
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            if path == "/slow":
                self.has_slow_visitor.set()
                await self._drip(writer)
            writer.write(self._said(path))
            await writer.drain()
        writer.close()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        """A byte now and then, while there is patience."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not self.has_lost_patience.is_set():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    def _said(self, path: str) -> bytes:
        if path in _locations(self.port):
            return _redirect(_locations(self.port)[path])
        return {
            "/loop": _redirect("/loop"),
            "/nowhere": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
            "/page": _ok(b"<html>", "text/html"),
            "/packed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**7)),
            "/claims": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\nx",
            "/cut": _ok(self._picture, "image/png")[:-20],
            "/headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: x\r\n" % number for number in range(100_000)) + b"\r\n",
            "/nothing": b"",
            "/noise": bytes(range(256)) * 100,
            "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + bytes(40 * 2**20),
            "/chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx",
            "/error": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        }.get(path, _ok(self._picture, "image/png"))


def web_attacks(target: Target) -> Iterator[Attack]:
    """All of them."""
    for group, urls in (
        (_SSRF, _addresses(target)),
        (_REDIRECT, _redirected(target)),
        (_HOST, _hosts(target)),
        (_FILE, _files(target)),
    ):
        for name, url in urls.items():
            body = image_body(target.model, url, max_tokens=1)
            yield Attack(group, name, post(target, body), (400, HUNG_UP), is_slow=name == "a picture that comes byte by byte")


def _addresses(target: Target) -> Mapping[str, str]:
    port, pictures = target.web_port, target.pictures
    return {
        "the cloud's metadata": "http://169.254.169.254/latest/meta-data/",
        "metadata by IPv6": "http://[fd00:ec2::254]/latest/meta-data/",
        "metadata as an IPv4 address within IPv6": "http://[::ffff:169.254.169.254]/",
        "metadata in decimal": "http://2852039166/",
        "metadata in hexadecimal": "http://0xA9FEA9FE/",
        "metadata in octal": "http://0251.0376.0251.0376/",
        "metadata by name": "http://metadata.google.internal/computeMetadata/v1/",
        "loopback": f"http://127.0.0.1:{port}/",
        "loopback, shortened": f"http://127.1:{port}/",
        "loopback, as zero": f"http://0:{port}/",
        "loopback by IPv6": f"http://[::1]:{port}/",
        "the unspecified address": f"http://[::]:{port}/",
        "an address with a zone": f"http://[fe80::1%25eth0]:{port}/",
        "loopback by name": f"http://localhost:{port}/",
        "loopback in circled digits": f"http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/",
        "an allowed host as the user's name": f"http://{pictures.split(':')[0]}@127.0.0.1:{port}/",
        "an allowed host behind a fragment": f"http://127.0.0.1:{port}#@{pictures}/",
        "an allowed host behind a backslash": f"http://127.0.0.1:{port}\\@{pictures}/",
        "an allowed host with another port": f"http://{pictures.split(':')[0]}:22/",
        "an allowed host as a subdomain": f"http://{pictures.split(':')[0]}.evil.test:{port}/",
        "a host that ends like an allowed one": f"http://evil{pictures}/",
        "a header in the host": f"http://{pictures}\r\nX-Evil: 1/",
        "a zero byte in the host": f"http://{pictures.split(':')[0]}%00.evil.test:{port}/",
        "a name at a private address": f"http://inside.rebind.test:{port}/",
        "a name at a public and a private address": f"http://mixed.rebind.test:{port}/",
        "a name at an IPv4 address within IPv6": f"http://six.rebind.test:{port}/",
        "gopher:": f"gopher://127.0.0.1:{port}/_GET",
        "ftp:": f"ftp://{pictures}/a.png",
        "jar:": f"jar:http://{pictures}!/a.png",
        "javascript:": "javascript:alert(1)",
        "a megabyte of a URL": f"http://{pictures}/" + "a" * 2**20,
    }


def _locations(port: int) -> Mapping[str, str]:
    return {
        "/to-loopback": f"http://127.0.0.1:{port}/",
        "/to-metadata": "http://169.254.169.254/latest/meta-data/",
        "/to-ipv6": f"http://[::1]:{port}/",
        "/to-decimal": f"http://2130706433:{port}/",
        "/to-private-name": f"http://inside.rebind.test:{port}/",
        "/to-relative-host": f"//127.0.0.1:{port}/",
        "/to-file": "file:///etc/passwd",
        "/to-data": "data:image/png;base64,AAAA",
        "/to-gopher": f"gopher://127.0.0.1:{port}/",
    }


def _redirected(target: Target) -> Mapping[str, str]:
    paths = [*_locations(target.web_port), "/loop", "/nowhere"]
    return {f"a redirect {path[1:].replace('-', ' ')}": f"http://{target.pictures}{path}" for path in paths}


def _hosts(target: Target) -> Mapping[str, str]:
    names = {
        "/page": "a page in place of a picture",
        "/packed": "a packed bomb",
        "/claims": "10^12 bytes, by the header",
        "/cut": "a picture that is cut off",
        "/headers": "10^5 headers",
        "/nothing": "no answer",
        "/noise": "noise in place of HTTP",
        "/endless": "more bytes than are taken",
        "/chunks": "a chunk of 2^64 bytes",
        "/error": "an error",
        "/slow": "a picture that comes byte by byte",
    }
    return {name: f"http://{target.pictures}{path}" for path, name in names.items()}


def _files(target: Target) -> Mapping[str, str]:
    folder = target.folder
    return {
        "the passwords": "file:///etc/passwd",
        "up and down": f"file://{folder}/../outside.png",
        "up and down, encoded": f"file://{folder}/%2e%2e/outside.png",
        "up and down, encoded twice": f"file://{folder}/%252e%252e/outside.png",
        "a link that leads outside": f"file://{folder}/link.png",
        "a link to a folder outside": f"file://{folder}/up/outside.png",
        "a pipe": f"file://{folder}/pipe.png",
        "the folder itself": f"file://{folder}",
        "another machine": f"file://evil.test{folder}/picture.png",
        "a zero byte": f"file://{folder}/picture.png%00.jpg",
        "a query": f"file://{folder}/picture.png?x",
        "the environment": "file:///proc/self/environ",
        "a device": "file:///dev/zero",
        "a relative path": "file:picture.png",
    }


def prepare_folder(root: Path, picture: bytes) -> Path:
    """A folder for file: URIs, and what an attacker would want of it."""
    folder = root / "media"
    folder.mkdir()
    (folder / "picture.png").write_bytes(picture)
    (root / "outside.png").write_bytes(picture)
    (folder / "link.png").symlink_to(root / "outside.png")
    (folder / "up").symlink_to(root)
    os.mkfifo(folder / "pipe.png")
    return folder


def _ok(body: bytes, kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
