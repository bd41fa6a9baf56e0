"""Attacks on HTTP itself: paths, headers, framing, other protocols, keys, and clients that take their time."""

import asyncio
import base64
import contextlib
from collections.abc import Iterator, Mapping

from serving_checks.attack import HUNG_UP, REFUSED, Attack, Dialogue, Target, post, read_all, request
from serving_checks.faults import CHAT, chat_body

_PATHS, _FRAMING, _PROTOCOLS, _KEYS, _TYPES, _SLOW = "paths", "framing", "protocols", "keys", "content types", "slow clients"
_CLOSED = (*REFUSED, HUNG_UP)
_BYTE_EVERY = 0.5  # seconds
_HARMLESS = ("a header over two lines",)  # HTTP had it once, and it has one meaning
_WAITING = ("a chunk of 2^68 bytes", "a body that is cut off")  # for more of the body, until its time is over


def http_attacks(target: Target) -> Iterator[Attack]:
    """All of them."""
    for path in _STRANGE_PATHS:
        yield Attack(_PATHS, f"GET {path[:40]}", request(target, "GET", path, _key(target)), _CLOSED)
    for name, sent in _framed(target).items():
        allowed = (*_CLOSED, 200) if name in _HARMLESS else _CLOSED
        yield Attack(_FRAMING, name, sent, allowed, is_slow=name in _WAITING)
    for name, sent in _harmless(target).items():
        yield Attack(_FRAMING, name, sent, (*_CLOSED, 200))
    for name, sent in _other_protocols(target).items():
        yield Attack(_PROTOCOLS, name, sent, _CLOSED, most_answers=2)  # a preface may be two bad requests
    pipelined = request(target, "GET", "/health", {}).replace(b"Connection: close\r\n", b"") * 199
    everything = pipelined + request(target, "GET", "/health", {})
    yield Attack(_FRAMING, "200 requests at once on one connection", everything, (200,), most_answers=200)
    yield from _with_keys(target)
    yield from _with_types(target)
    for name, dialogue in _slow(target).items():
        yield Attack(_SLOW, name, dialogue, (*_CLOSED, 200), is_slow=True)


_STRANGE_PATHS = (
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/v1/models/../../../etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/models/digits%00.json",
    "//evil.test/",
    "/\\evil.test/",
    "/docs/../openapi.json/../../.env",
    "/.git/config",
    "/static/../serving/auth.py",
    "/v1/chat/completions/",
    "/%ff%fe",
    "/" + "a" * 100_000,
    "*",
    "http://169.254.169.254/latest/meta-data/",
)


def _key(target: Target) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {target.key}"}


def _framed(target: Target) -> Mapping[str, bytes]:
    """Requests whose length two servers could read differently: behind the first one hides another."""
    body = chat_body(target.model, "x", max_tokens=1)
    hidden = request(target, "GET", "/v1/models", _key(target))

    def framed(*lines: str, end: bytes = b"\r\n", sent: bytes = body) -> bytes:
        own = (f"Host: {target.host}", "Content-Type: application/json", f"Authorization: Bearer {target.key}")
        head = [f"POST {CHAT} HTTP/1.1", *own, *lines]
        return end.join(line.encode("latin-1") for line in head) + end + end + sent

    length, chunked = f"Content-Length: {len(body)}", "Transfer-Encoding: chunked"
    in_chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return {
        "a length and chunks": framed("Content-Length: 4", chunked, "Connection: close", sent=b"0\r\n\r\n" + hidden),
        "two lengths": framed(length, "Content-Length: 1", sent=body + hidden),
        "a list of lengths": framed(f"Content-Length: {len(body)}, 1", sent=body + hidden),
        "a negative length": framed("Content-Length: -1"),
        "a length with a sign": framed(f"Content-Length: +{len(body)}"),
        "a length in other digits": framed("Content-Length: \xb2"),
        "a length of 10^30": framed(f"Content-Length: {10**30}"),
        "a length of 10^10": framed(f"Content-Length: {10**10}", "Connection: close"),
        "chunks by another name": framed("Transfer-Encoding: xchunked", sent=in_chunks),
        "chunks and identity": framed("Transfer-Encoding: chunked, identity", sent=in_chunks),
        "chunks twice": framed(chunked, chunked, sent=in_chunks),
        "a space before a colon": framed("Transfer-Encoding : chunked", sent=in_chunks),
        "a chunk of 2^68 bytes": framed(chunked, "Connection: close", sent=b"F" * 17 + b"\r\nx"),
        "a chunk of negative size": framed(chunked, "Connection: close", sent=b"-1\r\nx"),
        "a chunk with a megabyte of options": framed(chunked, "Connection: close", sent=b"1;" + b"a" * 2**20 + b"\r\nx\r\n"),
        "headers after the body": framed(chunked, "Connection: close", sent=b"0\r\nContent-Length: 9\r\n\r\n"),
        "a header over two lines": framed(length, "X-Evil: a\r\n b", "Connection: close"),
        "a zero byte in a header": framed(length, "X-Evil: a\0b"),
        "a bare carriage return in a header": framed(length, "X-Evil: a\rContent-Length: 0"),
        "no host": f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {target.key}\r\n\r\n".encode(),
        "two hosts": f"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\nAuthorization: Bearer {target.key}\r\n\r\n".encode(),
        "another site's name for this host": request(target, "GET", "/health", {}).replace(
            target.host.encode(), b"evil.test", 1
        ),
        "a header of a megabyte": request(target, "GET", "/health", {"X-Evil": "x" * 2**20}),
        "a header without a name": request(target, "GET", "/health", {"": "x"}).replace(b"close", b"close\r\n: x", 1),
        "a request line of a megabyte": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n\r\n",
        "a method of 10^5 letters": b"G" * 100_000 + b" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "a body that is cut off": framed(f"Content-Length: {len(body) + 10}", "Connection: close"),
    }


def _harmless(target: Target) -> Mapping[str, bytes]:
    """What is answered if it comes at once, since it is parsed then without waiting for more."""
    return {
        "10^4 headers": request(target, "GET", "/health", {f"X-{number}": "x" for number in range(10_000)}),
        "a query of 20 kB": request(target, "GET", "/?" + "a=b&" * 5000, {}),
    }


def _other_protocols(target: Target) -> Mapping[str, bytes]:
    upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 22 + "==", "Sec-WebSocket-Version": "13"}
    return {
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\nConnection: close\r\n\r\n",
        "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(197),
        "a tunnel": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n",
        "TRACE": request(target, "TRACE", "/health", _key(target)),
        "a method of the attacker's": request(target, "EVIL", "/health", {}),
        "a web socket": request(target, "GET", CHAT, upgrade).replace(b"Connection: close", b"Connection: Upgrade, close", 1),
        "HTTP/2 by upgrade": request(target, "GET", CHAT, {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}),
        "Redis": b"*1\r\n$4\r\nINFO\r\n\r\n",
        "noise": bytes(range(256)) * 200 + b"\r\n\r\n",
    }


def _with_keys(target: Target) -> Iterator[Attack]:
    body, key = chat_body(target.model, "x", max_tokens=1), target.key
    basic = base64.b64encode(f"x:{key}".encode()).decode()
    guesses = {
        "no key": "",
        "an empty key": "Bearer ",
        "another key": "Bearer sk-another",
        "the key without its last letter": f"Bearer {key[:-1]}",
        "the key and a letter more": f"Bearer {key}x",
        "the key in capitals": f"Bearer {key.upper()}",
        "the key by another scheme": f"Basic {basic}",
        "the key without a scheme": key,
        "two keys in one header": f"Bearer {key}, Bearer x",
        "a key of 30 kB": "Bearer " + "k" * 30_000,
        "a key beyond ASCII": "Bearer \u2713",
        "a key with a zero byte": f"Bearer {key}\0",
    }
    for name, header in guesses.items():
        yield Attack(_KEYS, name, post(target, body, Authorization=header), _CLOSED)
    in_url = request(target, "POST", f"{CHAT}?api_key={key}", {"Content-Type": "application/json", "X-Api-Key": key})
    yield Attack(_KEYS, "the key in the URL", in_url, _CLOSED)
    yield Attack(_KEYS, "the models without a key", request(target, "GET", "/v1/models", {}), (401,))
    guessing = b"".join(_guess(target, number) for number in range(200))
    last = request(target, "GET", "/v1/models", {"Authorization": "Bearer x"})
    yield Attack(_KEYS, "200 guesses on one connection", guessing + last, (401,), most_answers=201)


def _guess(target: Target, number: int) -> bytes:
    guess = request(target, "GET", "/v1/models", {"Authorization": f"Bearer sk-{number}"})
    return guess.replace(b"Connection: close\r\n", b"")


def _with_types(target: Target) -> Iterator[Attack]:
    body = chat_body(target.model, "x", max_tokens=1)
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
                 "application/json; charset=utf-16", "application/json/evil", "application/json, text/plain"):  # fmt: skip
        yield Attack(_TYPES, kind or "none", post(target, body, Content_Type=kind), (415,))
    for coding in ("gzip", "br", "zstd", "gzip, gzip"):
        yield Attack(_TYPES, f"packed by {coding}", post(target, body, Content_Encoding=coding), (415,))


def _slow(target: Target) -> Mapping[str, Dialogue]:
    body = chat_body(target.model, "x", max_tokens=1)
    whole = post(target, body)
    long = post(target, chat_body(target.model, "x", max_tokens=3000, min_tokens=3000, stream=True, logprobs=True))
    return {
        "headers of a byte each half second": _drip(whole, 20),
        "headers that never come": _drip(b"", 0),
        "headers that stop in the middle": _drip(whole[:50], 50),
        "a body of a byte each half second": _drip(whole, len(whole) - len(body)),
        "a body that stops in the middle": _drip(whole[:-5], len(whole) - 5),
        "a client that reads nothing": _without_reading(long),
        "a client that leaves at once, 50 times": _leaving(target, whole),
        "100 connections without a word": _silent(target, 100),
    }


def _drip(sent: bytes, at_once: int) -> Dialogue:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        reading = asyncio.ensure_future(read_all(reader))
        with contextlib.suppress(ConnectionError):
            writer.write(sent[:at_once])
            for byte in sent[at_once:]:
                if reading.done():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.wait({reading}, timeout=_BYTE_EVERY)
        return await reading

    return talk


def _without_reading(sent: bytes) -> Dialogue:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(sent)
        await asyncio.sleep(30)  # the reader's own buffer is soon full
        return await read_all(reader)

    return talk


def _leaving(target: Target, sent: bytes) -> Dialogue:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for _number in range(50):
            _, other = await asyncio.open_connection(target.host, target.port)
            other.write(sent)
            await other.drain()
            other.transport.abort()
        return b""

    return talk


def _silent(target: Target, count: int) -> Dialogue:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        others = [await asyncio.open_connection(target.host, target.port) for _ in range(count)]
        said = await asyncio.gather(*(read_all(each) for each, _ in others), read_all(reader))
        for _, other in others:
            other.close()
        return b"".join(said)

    return talk
