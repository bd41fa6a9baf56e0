"""Media that requests hold before they are decoded have a bound, of each and together."""

import pytest

from owl3_jax.serving.budget import MediaBudget
from owl3_jax.serving.errors import ApiError


def test_a_request_has_its_share():
    budget = MediaBudget(bytes_each=100, bytes_all=1000)
    with budget.account() as charge:
        charge(60)
        charge(40)
        with pytest.raises(ApiError) as raised:
            charge(1)
        assert (raised.value.status, raised.value.code) == (413, "request_too_large")
    assert budget.held == 0


def test_all_together_have_a_bound():
    budget = MediaBudget(bytes_each=100, bytes_all=150)
    with budget.account() as first, budget.account() as second:
        first(90)
        second(60)
        with pytest.raises(ApiError) as raised:
            second(1)
        assert raised.value.status == 429 and raised.value.headers == {"retry-after": "1"}
    with budget.account() as charge:  # what they held is free
        charge(100)
