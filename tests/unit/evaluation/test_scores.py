"""Scores against cases worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.evaluation.scores import is_exact_match, parse_choice, wilson_interval

OPTIONS = ("3", "7", "1", "9")


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("red 7 B", 1),
        ("7 D", 3),
        ("A", 0),
        ("B.", 1),
        ("(C)", 2),
        ("A: no, it is C", 2),  # the last one decides
        ("red 7", None),
        ("", None),
        ("E", None),  # there are four options
        ("Blue", None),
        ("7B", None),
        ("a", None),
    ],
)
def test_the_choice_is_the_last_letter_that_stands_alone(answer, choice):
    assert parse_choice(answer, OPTIONS) == choice


def test_letters_go_as_far_as_the_options():
    assert parse_choice("E", ["0", "1", "2", "3", "4"]) == 4


@pytest.mark.parametrize(
    ("answer", "matches"),
    [("red 7", True), (" red  7 ", True), ("red 1", False), ("7", False), ("red 7 B", False), ("", False)],
)
def test_exact_match_is_about_the_whole_answer(answer, matches):
    assert is_exact_match(answer, "red 7") is matches


def test_exact_match_does_not_depend_on_how_a_tokenizer_spaces_words():
    assert is_exact_match("Image 1 2 : 7", "Image 12: 7") and not is_exact_match("Image 1 : 7", "Image 12: 7")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(successes, trials, low, high):
    """Table I of R. G. Newcombe, Statistics in Medicine 17 (1998) 857, method 3."""
    np.testing.assert_allclose(wilson_interval(successes, trials), (low, high), atol=5e-5)


@given(st.integers(1, 997), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1
    np.testing.assert_allclose(wilson_interval(trials - successes, trials), (1 - high, 1 - low), atol=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_refuses_what_is_no_share(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} of {trials}"):
        wilson_interval(successes, trials)
