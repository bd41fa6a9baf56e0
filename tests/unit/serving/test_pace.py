"""Reading prompts and decoding answers share the time."""

from owl3_jax.serving.pace import Pace


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
