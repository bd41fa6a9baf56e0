"""Fetches take turns: no host holds up the others, and no turn is lost."""

import asyncio

import pytest

from owl3_jax.serving.media_refused import MediaRefused
from tests.media_host import PICTURE, Answer, fetcher, ok, refused, running


class Gate:
    """An answer that comes when it is opened, and the most requests that waited for it at a time."""

    def __init__(self) -> None:
        self._opened, self._changed = asyncio.Event(), asyncio.Condition()
        self.waiting = self.most = 0

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        await self._count(1)
        await self._opened.wait()
        await self._count(-1)
        writer.write(ok(PICTURE))

    async def until_waiting(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.waiting == number)

    def open(self) -> None:
        self._opened.set()

    async def _count(self, step: int) -> None:
        async with self._changed:
            self.waiting += step
            self.most = max(self.most, self.waiting)
            self._changed.notify_all()


def test_a_slow_host_holds_up_no_other(certificate):
    async def scenario() -> None:
        gate = Gate()
        answers: dict[str, Answer] = {"/slow": gate, "/": ok(PICTURE)}
        limits = {"max_fetches": 3, "max_fetches_per_domain": 2}
        async with running(answers, certificate) as host, fetcher(host, certificate, **limits) as made:
            slow = [asyncio.create_task(made.fetch(f"https://slow.example:{host.port}/slow", "image")) for _ in range(7)]
            await gate.until_waiting(2)
            for _ in range(3):
                assert await made.fetch(f"https://media.example:{host.port}/", "image") == PICTURE
            assert not any(task.done() for task in slow)
            gate.open()
            assert await asyncio.gather(*slow) == [PICTURE] * 7
            assert gate.most == 2

    asyncio.run(scenario())


def test_hosts_below_one_domain_take_turns_together(certificate):
    async def scenario() -> int:
        gate = Gate()
        async with running({"/": gate}, certificate) as host, fetcher(host, certificate, max_fetches_per_domain=2) as made:
            urls = [f"https://host{number}.cdn.example:{host.port}/" for number in range(5)]
            tasks = [asyncio.create_task(made.fetch(url, "image")) for url in urls]
            await gate.until_waiting(2)
            gate.open()
            await asyncio.gather(*tasks)
            return gate.most

    assert asyncio.run(scenario()) == 2


def test_all_fetches_together_are_bounded(certificate):
    async def scenario() -> int:
        gate = Gate()
        async with running({"/": gate}, certificate) as host, fetcher(host, certificate, max_fetches=3) as made:
            urls = [f"https://{name}:{host.port}/" for name in ("media.example", "other.example", "slow.example") * 3]
            tasks = [asyncio.create_task(made.fetch(url, "image")) for url in urls]
            await gate.until_waiting(3)
            gate.open()
            await asyncio.gather(*tasks)
            return gate.most

    assert asyncio.run(scenario()) == 3


def test_who_waits_too_long_for_a_turn_is_refused_and_takes_none(certificate):
    async def scenario() -> None:
        gate = Gate()
        limits = {"max_fetches_per_domain": 1, "queue_timeout": 0.2}
        async with running({"/": gate}, certificate) as host, fetcher(host, certificate, **limits) as made:
            first = asyncio.create_task(made.fetch(url := f"https://media.example:{host.port}/", "image"))
            await gate.until_waiting(1)
            with pytest.raises(MediaRefused, match=r"waited for 0\.2 s behind others") as raised:
                await made.fetch(url, "image")
            assert refused(raised) == "media_timeout"
            gate.open()
            assert await first == PICTURE
            assert await made.fetch(url, "image") == PICTURE
            assert len(host.requests) == 2

    asyncio.run(scenario())


def test_a_fetch_that_is_cancelled_gives_its_turn_back(certificate):
    async def scenario() -> bytes:
        gate = Gate()
        answers: dict[str, Answer] = {"/slow": gate, "/": ok(PICTURE)}
        async with running(answers, certificate) as host, fetcher(host, certificate, max_fetches=1) as made:
            task = asyncio.create_task(made.fetch(f"https://slow.example:{host.port}/slow", "image"))
            await gate.until_waiting(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            content = await made.fetch(f"https://media.example:{host.port}/", "image")
            gate.open()
            return content

    assert asyncio.run(scenario()) == PICTURE
