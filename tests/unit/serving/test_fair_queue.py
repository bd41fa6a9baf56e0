"""Turns: short before long, but none waits for ever; each client behind its own requests; priorities first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.serving.fair_queue import FairQueue


def in_order(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_a_short_request_overtakes_a_long_one_that_would_still_be_read():
    queue = FairQueue()
    queue.put("long", client="a", work=100.0, now=0.0)
    queue.put("short", client="b", work=2.0, now=50.0)
    queue.put("too late", client="c", work=2.0, now=99.0)
    assert in_order(queue) == ["short", "long", "too late"]


def test_a_client_lines_up_behind_its_own_requests():
    queue = FairQueue()
    for number in range(5):
        queue.put(f"many {number}", client="many", work=1.0, now=0.0)
    queue.put("one", client="one", work=1.0, now=0.5)
    assert in_order(queue).index("one") == 1


def test_a_client_that_was_away_owes_nothing():
    queue = FairQueue()
    queue.put("first", client="a", work=10.0, now=0.0)
    assert queue.put("again", client="a", work=1.0, now=100.0) == 101.0


def test_priorities_come_first():
    queue = FairQueue()
    queue.put("usual", client="a", work=1.0, now=0.0)
    queue.put("urgent", client="b", work=100.0, now=5.0, priority=-1)
    assert in_order(queue) == ["urgent", "usual"]


def test_one_is_taken_out_of_turn():
    queue = FairQueue()
    for name in ("a", "b", "c"):
        queue.put(name, client=name, work=1.0, now=0.0)
    assert queue.remove("b") and not queue.remove("b")
    assert queue.first() == "a" and in_order(queue) == ["a", "c"] and queue.first() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 50), st.floats(0, 20)), min_size=1, max_size=30))
def test_nobody_waits_for_more_than_those_before_its_finish(arrivals):
    """Whatever comes, a request is served before all that arrive after its finish time."""
    queue, now, finishes, arrived = FairQueue(), 0.0, {}, {}
    for number, (client, work, later) in enumerate(arrivals):
        now += later
        arrived[number] = now
        finishes[number] = queue.put(number, client=str(client), work=work, now=now)
    order = in_order(queue)
    for place, number in enumerate(order):
        assert all(arrived[before] <= finishes[number] for before in order[:place])


@pytest.mark.parametrize("priority", [0, 3])
def test_equals_come_in_the_order_of_their_arrival(priority):
    queue = FairQueue()
    items = [object() for _ in range(20)]
    for item in items:
        queue.put(item, client=str(id(item)), work=1.0, now=0.0, priority=priority)
    assert in_order(queue) == items
