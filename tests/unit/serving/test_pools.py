"""Pages of text and images are borrowed together, or not at all."""

import pytest

from owl3_jax.inference.page_pool import PoolFullError
from owl3_jax.serving.pools import Pools, PoolSizes
from tests.unit.inference.tiny_engine import runtime


def test_a_request_whose_text_does_not_fit_takes_no_image_from_its_page():
    pools = Pools(runtime(), PoolSizes(text_pages=3, tokens_per_page=32, image_pages=1))
    loan = pools.borrow([1, 2, 3], [0], [b"a"], room=0)
    pools.of_images.mark_written(loan.images[0])
    pools.give_back(loan)
    pools.borrow(range(64), [], [], room=0)
    before = pools.of_images.counts(), pools.of_text.counts()
    with pytest.raises(PoolFullError):
        pools.borrow(range(100, 140), [0], [b"b"], room=0)
    assert (pools.of_images.counts(), pools.of_text.counts()) == before
    assert pools.of_images.is_written(pools.borrow([1], [0], [b"a"], room=0).images[0])


def test_pools_that_are_made_anew_take_the_place_of_the_old_ones():
    pools = Pools(runtime(), PoolSizes(text_pages=3, tokens_per_page=32, image_pages=1))
    old = pools.text.keys
    pools.borrow(range(64), [0], [b"a"], room=0)
    pools.reset()
    assert old.is_deleted() and not pools.text.keys.is_deleted()
    assert pools.of_text.counts().used == pools.of_images.counts().used == 0
