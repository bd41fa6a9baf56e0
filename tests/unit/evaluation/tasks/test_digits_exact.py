"""Exact match: its questions and its score."""

import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.samples import judged
from owl3_jax.evaluation.tasks.digits_exact import DIGITS_EXACT, figures


def questions(**settings: object) -> list[Question]:
    return list(
        DIGITS_EXACT.questions(DataRoot(settings=EvalConfig(**{"questions": 5, "exact_match_images": (7,), **settings})))
    )


def test_questions_follow_from_the_seed():
    assert questions() == questions() != questions(seed=1)


def test_more_questions_leave_the_first_ones_as_they_are():
    assert questions(questions=11)[:5] == questions()[:5]


def test_both_namings_ask_about_the_same_pictures():
    by_colour, by_index = questions()[:5], questions()[5:]
    for colour, index in zip(by_colour, by_index, strict=True):
        assert (colour.images, colour.target) == (index.images, index.target)
        assert index.gold == f"Image {index.target + 1}: {colour.gold.split()[1]}"
        assert colour.text != index.text


def test_score_counts_whole_answers_by_naming_and_number_of_images():
    asked = questions(exact_match_images=(2, 3))
    by_colour = [each for each in asked if each.split == "by colour" and len(each.images) == 2]
    gold = [each.gold for each in by_colour]
    given = dict(zip((each.id for each in by_colour), [gold[0], f" {gold[1]}", "red", f"{gold[3]} B", ""], strict=True))
    answered = [judged(DIGITS_EXACT, each, given.get(each.id, "no")) for each in asked]
    scores = DIGITS_EXACT.score(answered)["official"]
    assert scores["accuracy (by colour) @2"].value == 40 and scores["accuracy (by index) @3"].value == 0
    assert scores["accuracy"].value == 10 and scores["accuracy (by colour) @2"].units == 5
    assert scores["accuracy (by colour) @2"].low < 40 < scores["accuracy (by colour) @2"].high
    axes = figures(answered)["digits_exact.png"].axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == [0.4, 0.0, 0.1]


def test_ids_differ_and_more_images_than_are_held_out_is_an_error():
    ids = [each.id for each in questions(exact_match_images=(1, 2, 4))]
    assert len(set(ids)) == len(ids) == 2 * 3 * 5 and ids[:2] == ["colour/1/0", "colour/1/1"]
    with pytest.raises(ConfigError, match=r"eval\.exact_match_images names 360 images, but only 359"):
        questions(exact_match_images=(1, 360))
