"""All attacks on one server, while a well-behaved client goes on asking."""

import asyncio
import base64
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp

from serving_checks.attack import Attack, Target, Verdict, carry_out
from serving_checks.attack_http import http_attacks
from serving_checks.attack_json import json_attacks
from serving_checks.attack_media import media_attacks
from serving_checks.attack_web import Web, prepare_folder, web_attacks
from serving_checks.attacked_server import __file__ as attacked_server
from serving_checks.faults import CHAT
from serving_checks.live import LiveServer, failures, live_server
from serving_checks.questions import Picture

_AT_ONCE = 8
_KEY = "sk-of-the-one-who-may"
_LIMITS = ("--max-pixels", 4_000_000, "--max-images", 64, "--max-body-mib", 8, "--allowed-hosts", "127.0.0.1")
_PAUSE = 0.1  # seconds between two questions of the well-behaved client
_OFTEN_ENOUGH = 3  # answers that it has to get at least
_QUESTION = "Describe the image."


@dataclasses.dataclass
class Bystander:
    """The client that does nothing wrong."""

    right: int = 0
    longest: float = 0.0  # seconds
    problems: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Assault:
    """What came of all."""

    verdicts: Sequence[Verdict]
    bystander: Bystander
    problems: Sequence[str]  # of the server as a whole

    @property
    def is_withstood(self) -> bool:
        """Whether nothing got in, and nobody was hurt."""
        return not (any(verdict.problem for verdict in self.verdicts) or self.bystander.problems or self.problems)


class Attacked(NamedTuple):
    """A server that expects the worst."""

    server: LiveServer
    target: Target
    web: Web


@contextlib.contextmanager
def attacked(folder: Path, picture: Picture, *flags: object) -> Iterator[Attacked]:
    """Starts a server with a key, and with a folder and a domain that it may fetch from.

    Args:
        folder: an empty one, for its log, its key, and the files that it may read.
        picture: what is in these places.
        flags: which checkpoint, in which dtype, and limits.
    """
    media = prepare_folder(folder, picture.content)
    (folder / "keys").write_text(f"{_KEY}\n")
    with Web(picture.content).running() as web:
        domains = f"http://pictures.test:{web.port},http://*.rebind.test:{web.port}"
        places = ("--allowed-media-domains", domains, "--allowed-local-media-path", media, "--api-key-file", folder / "keys")
        command = (sys.executable, attacked_server)
        with live_server(folder / "server.log", *flags, *_LIMITS, *places, command=command) as server:
            host, _, port = server.url.removeprefix("http://").partition(":")
            yield Attacked(
                server, Target(host, int(port), "digits", _KEY, f"pictures.test:{web.port}", web.port, str(media)), web
            )


async def assault(attacked: Attacked, picture: Picture, *, with_slow: bool, patience: float) -> Assault:
    """Attacks.

    Args:
        attacked: who.
        picture: what the well-behaved client shows.
        with_slow: whether attacks take part that wait for a time limit, which takes two minutes.
        patience: seconds within which the well-behaved client has to get its answers.
    """
    server, target, web = attacked
    before = await asyncio.to_thread(server.numbers)
    attacks = [each for each in all_attacks(target) if with_slow or not each.is_slow]
    verdicts, bystander = await _attack(server, target, attacks, picture, patience)
    problems = [f"somebody came to the canary: {visit[:80]!r}" for visit in web.visits]
    return Assault(verdicts, bystander, [*problems, *await _harm(server, before)])


def all_attacks(target: Target) -> Iterator[Attack]:
    """In a fixed order; those that wait come first."""
    attacks = [*web_attacks(target), *media_attacks(target), *json_attacks(target), *http_attacks(target)]
    yield from sorted(attacks, key=lambda attack: not attack.is_slow)


async def _attack(
    server: LiveServer, target: Target, attacks: Sequence[Attack], picture: Picture, patience: float
) -> tuple[list[Verdict], Bystander]:
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(attack: Attack) -> Verdict:
        async with contextlib.nullcontext() if attack.is_slow else turns:
            return await carry_out(attack, target)

    bystander = Bystander()
    asking = asyncio.ensure_future(_stand_by(server.url, target, picture, bystander, patience))
    await asyncio.wait({asking}, timeout=1.0)
    verdicts = await asyncio.gather(*map(one, attacks))
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    if bystander.right < _OFTEN_ENOUGH:
        bystander.problems.append(f"it got {bystander.right} right answers")
    return verdicts, bystander


async def _stand_by(url: str, target: Target, picture: Picture, seen: Bystander, patience: float) -> None:
    """Asks the same question again and again: the first answer, which is given in peace, is the right one."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(picture.content).decode()}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": _QUESTION}]}]
    body: Mapping[str, object] = {"model": target.model, "messages": messages, "temperature": 0, "max_tokens": 8}
    right = None
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {target.key}"}) as session:
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(patience), session.post(f"{url}{CHAT}", json=body) as response:
                    said = await response.json()
                text = said["choices"][0]["message"]["content"]
            except (TimeoutError, aiohttp.ClientError, ValueError, KeyError) as error:
                seen.problems.append(f"no answer: {error!r}")
            else:
                right = text if right is None else right
                seen.right += text == right
                seen.problems += [f"{text!r} in place of {right!r}"] if text != right else []
            seen.longest = max(seen.longest, time.monotonic() - began)
            await asyncio.sleep(_PAUSE)


async def _harm(server: LiveServer, before: Mapping[str, float]) -> Sequence[str]:
    """What the server itself shows when all is over."""
    deadline = time.monotonic() + 60
    names = ("owl3_requests_running", "owl3_requests_waiting", "owl3_image_pages/used", "owl3_text_pages/used")
    while True:
        numbers = await asyncio.to_thread(server.numbers)
        left = [f"{name} is {numbers[name]:g} when nobody asks any more" for name in names if numbers[name]]
        if not left or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    failed = {name: value - before.get(name, 0.0) for name, value in numbers.items() if name in failures(numbers)}
    return [*left, *(f"the server counts {value:g} answers of {name}" for name, value in failed.items() if value)]
