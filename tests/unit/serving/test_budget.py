"""What requests hold has a bound, of each and together."""

import pytest

from owl3_jax.serving.budget import Budget
from owl3_jax.serving.errors import ApiError


def test_a_request_has_its_share():
    budget = Budget("media", bytes_each=100, bytes_all=1000)
    with budget.account("one") as charge:
        charge(60)
        charge(40)
        with pytest.raises(ApiError) as raised:
            charge(1)
        assert (raised.value.status, raised.value.code) == (413, "request_too_large")
    assert budget.held == 0


def test_all_together_have_a_bound():
    budget = Budget("media", bytes_each=100, bytes_all=160)
    with budget.account("one") as first, budget.account("two") as second, budget.account("three") as third:
        first(80)
        second(60)
        third(20)
        with pytest.raises(ApiError) as raised:
            second(20)
        assert raised.value.status == 429 and raised.value.headers == {"retry-after": "1"}
    with budget.account("two") as charge:  # what they held is free
        charge(80)


def test_one_client_leaves_room_for_others():
    budget = Budget("media", bytes_each=640, bytes_all=1600)  # 10 bytes are few
    with budget.account("one") as first, budget.account("one") as more, budget.account("two") as other:
        first(600)
        with pytest.raises(ApiError):
            more(300)
        other(600)
    with budget.account("one") as first, budget.account("one") as more, budget.account("one") as few:
        first(600)
        more(200)
        few(10)
    assert budget.held == 0
