"""Items made ahead by a thread."""

import threading
import time
from collections.abc import Iterator

import pytest

from owl3_jax.host.ahead import ahead


def test_all_items_come_in_order_from_another_thread():
    threads = set()

    def items() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.get_ident())
            yield number

    assert list(ahead(items(), 3)) == list(range(100))
    assert threads and threading.get_ident() not in threads


def test_an_error_is_raised_where_its_item_would_be():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("lost")

    found = ahead(items(), 3)
    assert next(found) == 1
    with pytest.raises(KeyError, match="lost"):
        next(found)


def test_no_more_than_asked_for_are_made_ahead_and_closing_ends_the_thread():
    made, before = [], threading.active_count()

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    found = ahead(items(), 4)
    assert next(found) == 0
    deadline = time.monotonic() + 30
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == list(range(6))  # the first, four in the queue, one that waits for its place
    found.close()
    assert threading.active_count() == before and len(made) == 6
