"""A process that ends, fails or hangs is named to all others; one that says goodbye is not."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from owl3_jax.host import lifeline
from owl3_jax.host.lifeline import LOST, Lifeline, time_limit

REPOSITORY = Path(__file__).parents[3]
SILENCE = 1.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "_EVERY", 0.05)
    monkeypatch.setattr(lifeline, "_GRACE", 0.2)


class Run:
    """Process 0 and some others, as threads of this one."""

    def __init__(self, others: int) -> None:
        self.losses: dict[int, list[str]] = {number: [] for number in range(others + 1)}
        pairs = {number: socket.socketpair() for number in range(1, others + 1)}
        names = [f"host-{number}" for number in range(others + 1)]
        self.connections = {0: {number: pair[0] for number, pair in pairs.items()}}
        self.connections |= {number: {0: pair[1]} for number, pair in pairs.items()}
        self.lifelines = {
            number: Lifeline(number, peers, SILENCE, names, self.losses[number].append)
            for number, peers in self.connections.items()
        }

    def die(self, number: int) -> None:
        """As a kill: the connections are closed, and nothing is said."""
        self.lifelines[number]._ended.set()
        for connection in self.connections[number].values():
            connection.shutdown(socket.SHUT_RDWR)

    def hang(self, number: int) -> None:
        """As SIGSTOP: the connections stay, and nothing is said."""
        self.lifelines[number]._ended.set()

    def wait(self, *numbers: int) -> list[str]:
        """What these processes were told, once all were told something."""
        deadline = time.monotonic() + 20
        while not all(self.losses[number] for number in numbers):
            assert time.monotonic() < deadline, self.losses
            time.sleep(0.01)
        return [self.losses[number][0] for number in numbers]


@contextlib.contextmanager
def running(others: int) -> Iterator[Run]:
    run = Run(others)
    yield run
    for each in run.lifelines.values():
        each.close()
    for connection in (each for peers in run.connections.values() for each in peers.values()):
        connection.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_that_ends_is_named_to_all_others(victim):
    with running(2) as run:
        run.die(victim)
        others = {0, 1, 2} - {victim}
        for message in run.wait(*others):
            assert message.startswith(
                f"process {victim} (host-{victim}) has ended: see its output. All processes end; the same"
            )
        assert run.losses[victim] == []


@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_hangs_is_named_to_all_others(victim):
    with running(2) as run:
        began = time.monotonic()
        run.hang(victim)
        for message in run.wait(*({0, 1, 2} - {victim})):
            assert f"process {victim} (host-{victim}) has not answered for 1 s: it hangs" in message
        assert time.monotonic() - began >= SILENCE


def test_an_error_is_told_with_its_words():
    with running(2) as run:
        with pytest.raises(ValueError), run.lifelines[2]:
            raise ValueError("no\nroom")
        for message in run.wait(0, 1):
            assert "process 2 (host-2) has ended with an error: ValueError: no room" in message


def test_who_says_goodbye_is_not_missed():
    with running(2) as run:
        with run.lifelines[1]:
            pass
        with contextlib.suppress(SystemExit), run.lifelines[0]:
            sys.exit(0)
        time.sleep(3 * SILENCE)
        assert not any(run.losses.values())


def test_process_0_waits_for_the_goodbyes_of_all_others():
    with running(2) as run:
        waiting = threading.Thread(target=run.lifelines[0].await_others)
        waiting.start()
        run.lifelines[1].await_others()  # which wait for nobody
        run.lifelines[1].close()
        waiting.join(timeout=SILENCE)
        assert waiting.is_alive()
        run.lifelines[2].close()
        waiting.join(timeout=20)
        assert not waiting.is_alive() and not any(run.losses.values())


def test_nothing_happens_while_all_are_there():
    with running(3) as run:
        time.sleep(3 * SILENCE)
        assert not any(run.losses.values())


def test_a_suspended_process_accuses_nobody(monkeypatch: pytest.MonkeyPatch):
    """After a suspension the clock has gone on by hours, for all others as well if they are of the same machine."""
    hours = iter(range(0, 10**9, 3600))
    seconds = time.monotonic
    with running(2) as run:
        for _ in range(5):
            jump = next(hours)
            monkeypatch.setattr(lifeline.time, "monotonic", lambda jump=jump: seconds() + jump)
            time.sleep(SILENCE / 5)
        monkeypatch.setattr(lifeline.time, "monotonic", seconds)
        assert not any(run.losses.values())


def test_a_failed_operation_with_others_waits_for_the_cause():
    """The library notices a loss first, sometimes: who was lost is said nevertheless."""
    with running(2) as run:
        run.hang(2)
        with pytest.raises(jax.errors.JaxRuntimeError), run.lifelines[1]:
            raise jax.errors.JaxRuntimeError("connection closed by peer")
        assert "process 2 (host-2) has not answered" in run.losses[1][0]


def test_what_takes_longer_than_it_may_is_said_once():
    said: list[str] = []
    with time_limit(0.05, "no batch", said.append):
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == ["no batch"]


@pytest.mark.parametrize("seconds", [0.5, 0.0])
def test_what_ends_in_time_or_has_no_limit_is_left_alone(seconds):
    said: list[str] = []
    with time_limit(seconds, "no batch", said.append):
        time.sleep(0.05)
    time.sleep(0.6)
    assert not said


def test_the_process_ends_with_a_status_for_supervisors():
    program = "from owl3_jax.host.lifeline import end_process\nend_process('process 3 has ended')"
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (LOST, "error: process 3 has ended\n")
