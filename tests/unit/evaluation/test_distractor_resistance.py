"""Distractor Resistance: the samples of a question, and what counts."""

import pytest

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.distractor_resistance import make_questions, rotations, score

CONFIG = EvalConfig(distractor_questions=3, distractor_draws=2)
LETTERS = "ABCD"


def grouped(questions):
    """The prompts of each question."""
    size = questions.samples_per_question
    return [questions.prompts[start : start + size] for start in range(0, len(questions.prompts), size)]


def test_rotations_put_each_option_at_each_letter_once():
    orders = rotations((3, 7, 1, 9))
    assert orders == [(3, 7, 1, 9), (7, 1, 9, 3), (1, 9, 3, 7), (9, 3, 7, 1)]


@pytest.mark.parametrize("naming", ["colour", "index"])
def test_each_question_is_asked_in_all_rotations_with_each_set_of_distractors(naming):
    questions = make_questions(CONFIG, naming, 5)
    assert questions.samples_per_question == 8
    assert len(grouped(questions)) == 3
    for samples in grouped(questions):
        assert len({sample.images[sample.target] for sample in samples}) == 1
        assert samples[0].images == samples[3].images and samples[4].images == samples[7].images
        assert set(samples[0].images) != set(samples[4].images)
        for draw in (samples[:4], samples[4:]):
            first = draw[0].options
            assert [sample.options for sample in draw] == [(*first[start:], *first[:start]) for start in range(4)]
            assert sorted(sample.right_option for sample in draw) == [0, 1, 2, 3]


def test_options_are_four_digits_with_the_right_one():
    for prompt in make_questions(CONFIG, "index", 2).prompts:
        assert len(set(prompt.options)) == 4 and set(prompt.options) <= set("0123456789")
        digit, letter = prompt.expected.split()
        assert prompt.options[prompt.right_option] == digit
        assert LETTERS[prompt.right_option] == letter


def test_one_image_has_no_distractors_and_one_draw():
    questions = make_questions(CONFIG, "colour", 1)
    assert questions.samples_per_question == 4
    assert len(questions.prompts) == 3 * 4


def test_all_numbers_of_images_and_both_namings_ask_the_same_questions():
    asked = [
        [
            (samples[0].images[samples[0].target], samples[0].options)
            for samples in grouped(make_questions(CONFIG, naming, images))
        ]
        for naming in ("colour", "index")
        for images in (1, 2, 13)
    ]
    assert all(questions == asked[0] for questions in asked)


def test_questions_follow_from_the_seed():
    again = make_questions(EvalConfig(distractor_questions=3, distractor_draws=2), "colour", 5)
    assert make_questions(CONFIG, "colour", 5) == again
    other = make_questions(EvalConfig(distractor_questions=3, distractor_draws=2, seed=1), "colour", 5)
    assert other != again


def test_a_question_with_one_wrong_sample_does_not_count():
    questions = make_questions(CONFIG, "colour", 5)
    answers = [prompt.expected for prompt in questions.prompts]
    answers[8 + 5] = "no idea"
    point = score(questions, answers)
    assert (point.questions, point.samples_per_question) == (3, 8)
    assert (point.circular_right, point.circular_accuracy) == (2, 2 / 3)
    assert point.plain_accuracy == 23 / 24
    assert point.answers_without_choice == 1
    assert point.circular_chance == 0.25**8


def test_always_the_same_letter_is_right_in_one_rotation_of_four():
    questions = make_questions(CONFIG, "colour", 5)
    point = score(questions, ["red 7 C"] * len(questions.prompts))
    assert (point.circular_accuracy, point.plain_accuracy, point.answers_without_choice) == (0.0, 0.25, 0)


def test_the_letter_decides_whatever_digit_stands_before_it():
    questions = make_questions(CONFIG, "index", 5)
    answers = [LETTERS[prompt.right_option] for prompt in questions.prompts]
    assert score(questions, answers).circular_accuracy == 1.0
