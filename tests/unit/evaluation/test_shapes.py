"""Few batch shapes for many prompt sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.evaluation.shapes import PromptSize, choose_row_sizes, round_up, smallest_fit

sizes = st.lists(st.builds(PromptSize, st.integers(1, 719), st.integers(0, 131)), min_size=1, max_size=23)


def test_sizes_stay_apart_while_there_is_room():
    assert choose_row_sizes([PromptSize(5, 1), PromptSize(31, 1), PromptSize(33, 7)], 2, 16) == [(32, 1), (64, 7)]


def test_those_are_merged_that_cost_least():
    many_small, few_middle, one_large = [PromptSize(32, 2)] * 100, [PromptSize(32, 5)] * 3, [PromptSize(320, 50)]
    # Growing 3 prompts from 5 images to 50 costs less than growing 100 prompts from 2 images to 5.
    assert choose_row_sizes(many_small + few_middle + one_large, 2, 16) == [(32, 2), (320, 50)]
    assert choose_row_sizes(many_small[:2] + few_middle + one_large, 2, 16) == [(32, 5), (320, 50)]


def test_a_union_may_be_larger_than_both():
    assert choose_row_sizes([PromptSize(96, 2), PromptSize(32, 7)], 1, 16) == [(96, 7)]


@given(sizes, st.integers(1, 5))
def test_every_prompt_fits_one_of_at_most_so_many_row_sizes(sizes, limit):
    row_sizes = choose_row_sizes(sizes, limit, 16)
    assert len(row_sizes) <= limit
    assert all(smallest_fit(size, row_sizes, 16).fits(size) for size in sizes)


def test_the_smallest_row_that_fits_is_taken():
    rows = [PromptSize(32, 5), PromptSize(64, 5), PromptSize(64, 20)]
    assert smallest_fit(PromptSize(33, 5), rows, 16) == (64, 5)
    assert smallest_fit(PromptSize(3, 6), rows, 16) == (64, 20)


def test_a_prompt_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="65 tokens and 2 images"):
        smallest_fit(PromptSize(65, 2), [PromptSize(64, 5)], 16)


def test_no_row_size_at_all_is_an_error():
    with pytest.raises(ValueError, match="limit of 0"):
        choose_row_sizes([PromptSize(1, 1)], 0, 16)


def test_tokens_are_rounded_up():
    assert round_up(PromptSize(1, 3)) == (32, 3)
    assert round_up(PromptSize(64, 3)) == (64, 3)
