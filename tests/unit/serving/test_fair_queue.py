"""Turns: short before long, but none waits for ever; a client's requests share its time; priorities first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.serving.fair_queue import FairQueue


def in_order(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_a_short_request_overtakes_a_long_one_that_would_still_be_read():
    queue = FairQueue()
    queue.put("long", work=100.0, now=0.0)
    queue.put("short", work=2.0, now=50.0)
    queue.put("too late", work=2.0, now=99.0)
    assert in_order(queue) == ["short", "long", "too late"]


def test_a_client_that_sends_many_delays_its_own_requests():
    queue = FairQueue()
    for number in range(5):
        queue.put(f"many {number}", work=1.0, now=0.0, others=number)
    queue.put("one", work=1.0, now=0.5)
    assert in_order(queue).index("one") == 1


def test_a_short_request_overtakes_a_long_one_of_the_same_client():
    queue = FairQueue()
    queue.put("long", work=100.0, now=0.0)
    queue.put("short", work=1.0, now=5.0, others=1)
    assert in_order(queue) == ["short", "long"]


def test_priorities_come_first():
    queue = FairQueue()
    queue.put("usual", work=1.0, now=0.0)
    queue.put("urgent", work=100.0, now=5.0, priority=-1)
    assert in_order(queue) == ["urgent", "usual"]


def test_one_is_taken_out_of_turn():
    queue = FairQueue()
    for name in ("a", "b", "c"):
        queue.put(name, work=1.0, now=0.0)
    assert queue.remove("b") and not queue.remove("b")
    assert in_order(queue) == ["a", "c"]


def test_one_that_is_put_back_is_where_it_was():
    queue = FairQueue()
    queue.put("short", work=1.0, now=0.0)
    finish = queue.put("long", work=100.0, now=0.0)
    queue.put("longest", work=200.0, now=0.0)
    assert [queue.pop(), queue.pop()] == ["short", "long"]
    queue.put_back("long", priority=0, finish=finish)
    assert in_order(queue) == ["long", "longest"]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 50), st.floats(0, 20)), min_size=1, max_size=30))
def test_nobody_waits_for_more_than_those_before_its_finish(arrivals):
    """Whatever comes, a request is served before all that arrive after its finish time."""
    queue, now, finishes, arrived = FairQueue(), 0.0, {}, {}
    for number, (client, work, later) in enumerate(arrivals):
        now += later
        arrived[number] = now
        others = sum(its == client for its, _, _ in arrivals[:number])
        finishes[number] = queue.put(number, work=work, now=now, others=others)
    order = in_order(queue)
    for place, number in enumerate(order):
        assert all(arrived[before] <= finishes[number] for before in order[:place])


@pytest.mark.parametrize("priority", [0, 3])
def test_equals_come_in_the_order_of_their_arrival(priority):
    queue = FairQueue()
    items = [object() for _ in range(20)]
    for item in items:
        queue.put(item, work=1.0, now=0.0, priority=priority)
    assert in_order(queue) == items
