"""Where the wall time of a run goes, and what its steps were: `accounts.json` of a workdir.

    {"lives": [{"began", "updated", "first_step", "last_step", "doing", "ended", "seconds": {"start", "compile", ...}}, ...]}

A life is the time in which one process, the first of several, works on the run. `began` and `updated` are in seconds since
1970; `doing` is what it did at `updated`. It goes on from the checkpoint of `first_step`, so that an earlier life's steps after
that one are lost. `ended` is null while it lives, and stays so when it is killed.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import psutil

from owl3_jax.config import JsonTree
from owl3_jax.host.files import write_text

Activity = Literal["start", "compile", "step", "data", "save", "evaluation"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
_FILE = "accounts.json"


class Stopwatch:
    """The seconds of each activity. One is always under way: at first the start, which began with the process."""

    def __init__(self) -> None:
        self.began = psutil.Process().create_time()
        self._activity: Activity = "start"
        self._since = time.monotonic() - max(0.0, time.time() - self.began)
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)

    @property
    def activity(self) -> Activity:
        """The one that is under way."""
        return self._activity

    def turn_to(self, activity: Activity) -> None:
        """From now on it is this one."""
        now = time.monotonic()
        self._seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now

    @contextlib.contextmanager
    def time(self, activity: Activity) -> Iterator[None]:
        """This one inside the context, and afterwards the one before."""
        before = self._activity
        self.turn_to(activity)
        try:
            yield
        finally:
            self.turn_to(before)

    def seconds(self) -> dict[Activity, float]:
        """Those of each activity since the process began."""
        self.turn_to(self._activity)
        return dict(self._seconds)


class Accounts:
    """A run's `accounts.json`, with one more life. A context manager: the way in which it is left is how the life has ended."""

    def __init__(self, workdir: Path, stopwatch: Stopwatch, first_step: int) -> None:
        self._path, self._stopwatch = workdir / _FILE, stopwatch
        self._lives = _read(self._path)
        self._life: JsonTree = {"began": stopwatch.began, "first_step": first_step, "last_step": first_step, "ended": None}
        self.ended = "finished"  # what a life ends with that is left without an error

    def __enter__(self) -> "Accounts":
        self.write(self._life["first_step"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._life["ended"] = self.ended if error is None else f"error: {error}"
        self.write(self._life["last_step"])

    def write(self, step: int) -> None:
        """Brings the file up to date; `step` is the last one that was taken."""
        seconds = {name: round(value, 3) for name, value in self._stopwatch.seconds().items()}
        self._life |= {"last_step": step, "updated": time.time(), "doing": self._stopwatch.activity, "seconds": seconds}
        write_text(self._path, json.dumps({"lives": [*self._lives, self._life]}, indent=1) + "\n")


def _read(path: Path) -> list[JsonTree]:
    """The lives so far; none where the file is not there, or cannot be read: it is not worth a run."""
    try:
        lives: list[JsonTree] = json.loads(path.read_text(encoding="utf-8"))["lives"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return lives
