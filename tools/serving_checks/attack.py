"""Hostile input for a server: bytes that are sent, and what has to come of them."""

import asyncio
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from serving_checks.faults import CHAT

REFUSED = (400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 429, 431, 499, 501, 505)
HUNG_UP = 0  # as a status: the server closes without an answer
SECRET = "the canary's secret"

_PATIENCE = 120.0  # seconds, beyond every time limit of the server
_LONGEST = 4 * 2**20  # bytes of answers that are read
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
# What an answer to a stranger never holds: places in memory and on the disk, lines of code, what the canary guards.
_LEAKS = re.compile(rf"0x[0-9a-f]{{5,}}|Traceback|site-packages|/(?:usr|tmp|home|root|proc|etc)/|root:|{SECRET}", re.IGNORECASE)

Dialogue = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]  # returns what the server said


class Target(NamedTuple):
    """The server, and what an attacker may know of it."""

    host: str
    port: int
    model: str
    key: str
    pictures: str  # host:port that the server fetches from
    web_port: int  # the same port on 127.0.0.1, where the canary is
    folder: str  # that file: URIs may name files below


@dataclasses.dataclass(frozen=True)
class Attack:
    """One hostile input."""

    group: str
    name: str
    sent: bytes | Dialogue
    allowed: Sequence[int] = REFUSED  # statuses that are right
    most_answers: int = 1
    is_slow: bool = False  # by its nature: it waits for a time limit of the server


class Verdict(NamedTuple):
    """What came of it."""

    attack: Attack
    statuses: tuple[int, ...]
    code: str  # of the first error
    seconds: float
    problem: str  # empty: nothing got in


async def carry_out(attack: Attack, target: Target) -> Verdict:
    """Sends it on a connection of its own, and judges what the server says until it closes."""
    began = time.monotonic()
    said = b""
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                said = await (
                    _send(attack.sent, reader, writer) if isinstance(attack.sent, bytes) else attack.sent(reader, writer)
                )
            finally:
                writer.close()
    except TimeoutError:
        return Verdict(
            attack, (), "", time.monotonic() - began, f"the server neither answers nor closes within {_PATIENCE:g} s"
        )
    except OSError:
        pass  # it hung up
    statuses = tuple(map(int, _STATUS.findall(said))) or (HUNG_UP,)
    return Verdict(attack, statuses, _code(said), time.monotonic() - began, _problem(attack, statuses, said))


def post(target: Target, body: bytes, **headers: str) -> bytes:
    """A request for an answer, by whoever has a key. The headers' names are written with `_` for `-`."""
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {target.key}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return request(target, "POST", CHAT, {**given, "Content-Length": str(len(body))}) + body


def request(target: Target, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request; the connection ends with its answer."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {target.host}:{target.port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Until the server closes."""
    said = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(said) < _LONGEST and (piece := await reader.read(2**16)):
            said += piece
    return bytes(said)


async def _send(sent: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Reads at the same time: the server may answer before it has all of it."""
    reading = asyncio.ensure_future(read_all(reader))
    with contextlib.suppress(ConnectionError):
        writer.write(sent)
        await writer.drain()
    return await reading


def _code(said: bytes) -> str:
    for line in said.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["error"]["code"])
    return ""


def _problem(attack: Attack, statuses: Sequence[int], said: bytes) -> str:
    if wrong := [status for status in statuses if status not in attack.allowed]:
        return f"status {wrong[0]}: {said[-200:]!r}"
    if len(statuses) > attack.most_answers:
        return f"{len(statuses)} answers"
    sent = attack.sent.lower() if isinstance(attack.sent, bytes) else b""
    for found in _LEAKS.finditer(said.decode("utf-8", "replace")):
        if found[0].lower().encode() not in sent:  # what the attacker has said is no news to him
            return f"the answer holds {found[0]!r}"
    return ""
