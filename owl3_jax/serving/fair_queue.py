"""Who is next: fair between clients, and between short and long requests.

Each request has a finish time, at which it would have been read if its client had had the server to itself since it came, with
the time divided equally among that client's requests. The one with the smallest is next. So a short request overtakes a long
one that came before, its own client's too, but none that would be done by then, and none waits for ever; and a client that
sends many requests delays its own.
"""

import heapq
import itertools
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by priority, then by finish time. Not for several threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Item]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._heap)

    def put(self, item: Item, *, work: float, now: float, others: int = 0, priority: int = 0) -> float:
        """Adds an item that takes `work` seconds; returns its finish time.

        `now`: seconds, by a clock that only grows. `others`: its client's requests that have not been read either.
        """
        finish = now + work * (1 + others)
        heapq.heappush(self._heap, (priority, finish, next(self._numbers), item))
        return finish

    def put_back(self, item: Item, *, priority: int, finish: float) -> None:
        """Adds an item that was here before: of equal ones, first."""
        heapq.heappush(self._heap, (priority, finish, -next(self._numbers), item))

    def pop(self) -> Item:
        """Takes the one that is next."""
        return heapq.heappop(self._heap)[3]

    def remove(self, item: Item) -> bool:
        """Takes one out of turn; returns whether it was there."""
        kept = [entry for entry in self._heap if entry[3] is not item]
        found = len(kept) < len(self._heap)
        self._heap = kept
        heapq.heapify(self._heap)
        return found
