"""Distractor Resistance on digits: the samples of a question, and what counts."""

import itertools

import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.metrics import Metric
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.samples import judged
from owl3_jax.evaluation.tasks.digits_distractors import DIGITS_DISTRACTORS, figures
from owl3_jax.evaluation.tasks.distractor_resistance import rotations

LETTERS = "ABCD"


def questions(*images: int, naming: str = "colour", **settings: object) -> list[Question]:
    config = EvalConfig(**{"distractor_questions": 3, "distractor_draws": 2, "distractor_images": images or (5,), **settings})
    found = DIGITS_DISTRACTORS.questions(DataRoot(settings=config))
    return [each for each in found if each.split == f"by {naming}"]


def grouped(asked: list[Question]) -> list[list[Question]]:
    """The samples of each question."""
    return [list(samples) for _, samples in itertools.groupby(asked, key=lambda each: each.group)]


def score(asked: list[Question], answers: list[str]) -> dict[str, Metric]:
    answered = [judged(DIGITS_DISTRACTORS, *each) for each in zip(asked, answers, strict=True)]
    return DIGITS_DISTRACTORS.score(answered)["official"]


def test_rotations_put_each_option_at_each_letter_once():
    assert rotations((3, 7, 1, 9)) == [(3, 7, 1, 9), (7, 1, 9, 3), (1, 9, 3, 7), (9, 3, 7, 1)]


@pytest.mark.parametrize("naming", ["colour", "index"])
def test_each_question_is_asked_in_all_rotations_with_each_set_of_distractors(naming):
    groups = grouped(questions(naming=naming))
    assert [len(samples) for samples in groups] == [8, 8, 8]
    for samples in groups:
        assert len({each.images[each.target] for each in samples}) == 1
        assert samples[0].images == samples[3].images and samples[4].images == samples[7].images
        assert set(samples[0].images) != set(samples[4].images)
        for draw in (samples[:4], samples[4:]):
            assert [each.options for each in draw] == rotations(draw[0].options)
            assert sorted(each.gold for each in draw) == list(LETTERS)


def test_options_are_four_digits_with_the_right_one():
    for each in questions(2, naming="index"):
        assert len(set(each.options)) == 4 and set(each.options) <= set("0123456789")
        right = each.options[LETTERS.index(each.gold)]
        assert f"In Image {each.target + 1}, which digit?" in each.text and f"\n{each.gold}. {right}" in each.text


def test_one_image_has_no_distractors_and_one_draw():
    assert len(questions(1)) == 3 * 4


def test_all_numbers_of_images_and_both_namings_ask_the_same_questions():
    asked = [
        [(samples[0].images[samples[0].target], samples[0].options) for samples in grouped(questions(images, naming=naming))]
        for naming in ("colour", "index")
        for images in (1, 2, 13)
    ]
    assert all(each == asked[0] for each in asked)


def test_questions_follow_from_the_seed():
    assert questions() == questions() != questions(seed=1)


def test_a_question_with_one_wrong_sample_does_not_count():
    asked = questions()
    answers = [each.gold for each in asked]
    answers[8 + 5] = "no idea"
    scores = score(asked, answers)
    assert scores["circular_accuracy (by colour) @5"].value == pytest.approx(200 / 3)
    assert scores["accuracy (by colour) @5"].value == pytest.approx(100 * 23 / 24)
    assert scores["circular_accuracy"].units == 3 and scores["accuracy"].units == 24


def test_always_the_same_letter_is_right_in_one_rotation_of_four():
    asked = questions()
    scores = score(asked, ["red 7 C"] * len(asked))
    assert (scores["circular_accuracy"].value, scores["accuracy"].value) == (0.0, 25.0)


def test_the_letter_decides_whatever_digit_stands_before_it():
    asked = questions(naming="index")
    assert score(asked, [f"Image 2: 0 {each.gold}" for each in asked])["circular_accuracy"].value == 100


def test_ids_differ_and_64_questions_are_asked_unless_it_is_said():
    ids = [each.id for each in questions(1, 5)]
    assert len(set(ids)) == len(ids) == 3 * (4 + 8) and ids[:2] == ["colour/1/0/0", "colour/1/0/1"]
    assert len(questions(1, distractor_questions=0)) == 64 * 4
    with pytest.raises(ConfigError, match=r"eval\.distractor_images names 360 images, but only 359"):
        questions(1, 360)


def test_the_heat_map_has_each_place_of_the_target():
    asked = questions(1, 2, 13, naming="index", distractor_questions=20)
    answered = [judged(DIGITS_DISTRACTORS, each, each.gold if each.target == 0 else "") for each in asked]
    drawn = figures(answered)
    assert set(drawn) == {"digits_distractors.png", "digits_distractors_places.png"}
    shares = drawn["digits_distractors_places.png"].axes[0].images[0].get_array().filled(-1)
    assert shares.shape == (10, 3)
    assert set(shares[:, 0]) == {100} and list(shares[:, 1]) == [100] * 5 + [0] * 5 and set(shares[2:, 2]) <= {0, -1}
