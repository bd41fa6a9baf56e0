"""Reading prompts and decoding answers share the time."""

import pytest

from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.pace import Pace
from owl3_jax.serving.request import HeldPixels, Request
from tests.unit.inference.tiny_engine import TOKENIZER, prompt
from tests.unit.serving.serving_engine import generation


def test_answers_that_waited_for_a_unit_come_next_for_as_long():
    pace = Pace(0.5)
    assert pace.may_read()
    pace.has_read(1.0, images=2, tokens=0, is_delaying=True)
    assert not pace.may_read()
    pace.has_decoded(0.9)
    assert not pace.may_read()
    pace.has_decoded(0.1)
    assert pace.may_read()


def test_what_was_read_while_nothing_was_decoded_is_owed_to_nobody():
    """Otherwise a short prompt would wait for seconds behind the answer to a long one."""
    pace = Pace(0.5)
    for _ in range(100):
        pace.has_read(1.0, images=2, tokens=0, is_delaying=False)
    assert pace.may_read()


def test_time_that_was_only_decoded_is_no_credit_for_reading():
    pace = Pace(0.5)
    pace.has_decoded(100.0)
    pace.has_read(1.0, images=2, tokens=0, is_delaying=True)
    assert not pace.may_read()


def test_a_place_is_expected_when_the_shortest_of_what_is_under_way_is_complete():
    pace = Pace(0.5)
    for _ in range(100):
        pace.has_decoded(0.5)
    reading, running = (
        Request.of(generation(sample, Sampling()), lambda event: None, TOKENIZER, limit, HeldPixels())
        for sample, limit in ((prompt(10, [0]), 4), (prompt(3), 20))
    )
    running.read, running.ids = 3, [0] * 5
    assert pace.seconds_until_place([]) == 1.0
    assert pace.seconds_until_place([running]) == pytest.approx(7.5, rel=1e-3)
    assert pace.seconds_until_place([running, reading]) == pytest.approx(2.0 + pace.work(reading), rel=1e-3)
