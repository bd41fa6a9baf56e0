"""Where the wall time of a run goes."""

import json
import time
from pathlib import Path

import pytest

from owl3_jax.training import accounts
from owl3_jax.training.accounts import ACTIVITIES, Accounts, Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved on by hand."""
    now = [1000.0]
    monkeypatch.setattr(accounts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(accounts.time, "time", lambda: now[0])
    monkeypatch.setattr(accounts.psutil.Process, "create_time", lambda self: 990.0)
    return now


def test_all_time_is_somebodys(clock: list[float]):
    stopwatch = Stopwatch()
    clock[0] += 5
    with stopwatch.time("compile"):
        clock[0] += 7
    stopwatch.turn_to("step")
    clock[0] += 1
    with stopwatch.time("save"):
        clock[0] += 2
        with stopwatch.time("evaluation"):
            clock[0] += 3
        clock[0] += 4
    clock[0] += 1
    seconds = stopwatch.seconds()
    assert seconds == {"start": 15.0, "compile": 7.0, "step": 2.0, "data": 0.0, "save": 6.0, "evaluation": 3.0}
    assert sum(seconds.values()) == clock[0] - 990.0, "from the beginning of the process on"
    assert tuple(seconds) == ACTIVITIES


def lives(workdir: Path) -> list[dict]:
    return json.loads((workdir / "accounts.json").read_text())["lives"]


def test_each_life_is_kept_with_how_it_ended(tmp_path: Path, clock: list[float]):
    with Accounts(tmp_path, Stopwatch(), 0) as killed:
        clock[0] += 3
        killed.write(12)
        before = (tmp_path / "accounts.json").read_text()
        assert lives(tmp_path)[0] | {"seconds": {}} == {
            "began": 990.0, "first_step": 0, "last_step": 12, "doing": "start", "ended": None, "updated": 1003.0,
            "seconds": {},
        }  # fmt: skip
    (tmp_path / "accounts.json").write_text(before)  # it could not say goodbye
    with pytest.raises(ValueError), Accounts(tmp_path, Stopwatch(), 10) as failed:
        failed.write(14)
        raise ValueError("no room")
    with Accounts(tmp_path, Stopwatch(), 14) as finished:
        finished.write(20)
    assert [(life["first_step"], life["last_step"], life["ended"]) for life in lives(tmp_path)] == [
        (0, 12, None),
        (10, 14, "error: no room"),
        (14, 20, "finished"),
    ]


@pytest.mark.parametrize("content", ["", "{", '{"lives": ', "[]"])
def test_a_file_that_cannot_be_read_stops_no_run(tmp_path: Path, content: str):
    (tmp_path / "accounts.json").write_text(content)
    with Accounts(tmp_path, Stopwatch(), 5):
        pass
    assert [life["first_step"] for life in lives(tmp_path)] == [5]


def test_the_start_began_with_the_process():
    assert 0 < Stopwatch().seconds()["start"] == pytest.approx(time.time() - Stopwatch().began, abs=5)
