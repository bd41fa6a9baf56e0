"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts answered questions on standard output. A context manager."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        terminal = sys.stdout.isatty()
        self._bar = tqdm(total=total, unit="question", file=sys.stdout, dynamic_ncols=True, disable=not terminal)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """`count` questions more."""
        self._done += count
        self._bar.update(count)
        if self._bar.disable and (time.monotonic() >= self._next_line or self._done == self._total):
            print(f"answered {self._done}/{self._total} questions", flush=True)
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
