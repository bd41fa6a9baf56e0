"""Who is next: fair between clients, and between short and long requests.

Each request has a finish time, at which it would have been read if its client's requests had been read one after the other from
its arrival on. The one with the smallest is next. So a short request overtakes a long one that came before, but none that would
be done by then, and none waits for ever; and a client that sends many requests lines up behind its own.
"""

import heapq
import itertools
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by priority, then by finish time. Not for several threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Item]] = []
        self._finish: dict[str, float] = {}  # of each client's last request
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._heap)

    def put(self, item: Item, *, client: str, work: float, now: float, priority: int = 0) -> float:
        """Adds an item that takes `work` seconds; returns its finish time. `now`: seconds, by a clock that only grows."""
        self._finish = {name: finish for name, finish in self._finish.items() if finish > now}
        finish = max(now, self._finish.get(client, now)) + work
        self._finish[client] = finish
        heapq.heappush(self._heap, (priority, finish, next(self._numbers), item))
        return finish

    def first(self) -> Item | None:
        """The one that is next, which stays."""
        return self._heap[0][3] if self._heap else None

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

    def clear(self) -> list[Item]:
        """Takes all."""
        items, self._heap = [entry[3] for entry in sorted(self._heap, key=lambda entry: entry[:3])], []
        return items
