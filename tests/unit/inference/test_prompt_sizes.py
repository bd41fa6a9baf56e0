"""Few batch sizes for many prompt sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize, choose_batch_sizes, smallest_fit

SIZES = st.lists(st.builds(PromptSize, st.integers(1, 719), st.integers(0, 131)), min_size=1, max_size=23)


def choose(sizes: list[PromptSize], shapes: int, **limits: int) -> list[BatchSize]:
    return choose_batch_sizes(sizes, shapes=shapes, tokens_per_image=16, **({"images_per_batch": 256} | limits))


def choose_rows(sizes: list[PromptSize], shapes: int) -> list[PromptSize]:
    return [batch.row for batch in choose(sizes, shapes)]


def test_sizes_stay_apart_while_there_is_room():
    assert choose_rows([PromptSize(5, 1), PromptSize(31, 1), PromptSize(33, 7)], 2) == [(32, 1), (64, 7)]


def test_those_are_merged_that_cost_least():
    many_small, few_middle, one_large = [PromptSize(32, 2)] * 100, [PromptSize(32, 5)] * 3, [PromptSize(320, 50)]
    # Growing 3 prompts from 5 images to 50 costs less than growing 100 prompts from 2 images to 5.
    assert choose_rows(many_small + few_middle + one_large, 2) == [(32, 2), (320, 50)]
    assert choose_rows(many_small[:2] + few_middle + one_large, 2) == [(32, 5), (320, 50)]


def test_a_union_may_be_larger_than_both():
    assert choose_rows([PromptSize(96, 2), PromptSize(32, 7)], 1) == [(96, 7)]


@given(SIZES, st.integers(1, 5), st.integers(1, 300), st.integers(1, 5))
def test_every_prompt_fits_one_of_at_most_so_many_batch_sizes(sizes, shapes, images, divisor):
    batches = choose(sizes, shapes, images_per_batch=images, rows_divisor=divisor)
    assert len(batches) <= shapes
    assert all(smallest_fit(size, batches).row.fits(size) for size in sizes)
    for rows, row in batches:
        assert rows % divisor == 0
        assert rows * max(row.images, 1) <= images or rows == divisor
        assert rows < len(sizes) + divisor


def test_the_cheapest_row_that_fits_is_taken():
    batches = [BatchSize(1, PromptSize(*row)) for row in ((32, 5), (64, 5), (64, 20))]
    assert smallest_fit(PromptSize(33, 5), batches).row == (64, 5)
    assert smallest_fit(PromptSize(3, 6), batches).row == (64, 20)


@given(SIZES, st.integers(1, 5))
def test_batch_sizes_are_in_the_order_of_their_cost(sizes, shapes):
    costs = [row.tokens + 16 * row.images for row in choose_rows(sizes, shapes)]
    assert costs == sorted(costs)


def test_a_prompt_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="65 tokens and 2 images"):
        smallest_fit(PromptSize(65, 2), [BatchSize(1, PromptSize(64, 5))])


def test_no_batch_size_at_all_is_an_error():
    with pytest.raises(ValueError, match="limit of 0"):
        choose([PromptSize(1, 1)], 0)


def test_no_prompts_need_no_batch():
    assert choose([], 3) == []


def test_tokens_are_rounded_up():
    assert choose_rows([PromptSize(1, 3)], 1) == [(32, 3)]
    assert choose_rows([PromptSize(64, 3)], 1) == [(64, 3)]
