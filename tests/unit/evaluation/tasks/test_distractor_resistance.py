"""Distractor Resistance: the samples of a question, and what counts."""

import pytest

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.task import Scored
from owl3_jax.evaluation.tasks.digits_prompts import DigitQuestion, QuestionSet
from owl3_jax.evaluation.tasks.distractor_resistance import (
    DistractorResistance,
    Point,
    make_point,
    make_questions,
    rotations,
)

CONFIG = EvalConfig(distractor_questions=3, distractor_draws=2)
LETTERS = "ABCD"


def samples_of(questions: QuestionSet) -> list[DigitQuestion]:
    return [prompt.question for prompt in questions.prompts]


def grouped(questions: QuestionSet) -> list[list[DigitQuestion]]:
    """The samples of each question."""
    size, samples = questions.samples_per_question, samples_of(questions)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def score(questions: QuestionSet, answers: list[str]) -> Point:
    task, pairs = DistractorResistance(CONFIG), zip(samples_of(questions), answers, strict=True)
    return make_point(questions.naming, questions.images, [Scored(*pair, task.score(*pair)) for pair in pairs], CONFIG)


def test_rotations_put_each_option_at_each_letter_once():
    orders = rotations((3, 7, 1, 9))
    assert orders == [(3, 7, 1, 9), (7, 1, 9, 3), (1, 9, 3, 7), (9, 3, 7, 1)]


@pytest.mark.parametrize("naming", ["colour", "index"])
def test_each_question_is_asked_in_all_rotations_with_each_set_of_distractors(naming):
    questions = make_questions(CONFIG, naming, 5)
    assert questions.samples_per_question == 8
    assert len(grouped(questions)) == 3
    for samples in grouped(questions):
        assert len({sample.pictures[sample.target] for sample in samples}) == 1
        assert samples[0].pictures == samples[3].pictures and samples[4].pictures == samples[7].pictures
        assert set(samples[0].pictures) != set(samples[4].pictures)
        for draw in (samples[:4], samples[4:]):
            first = draw[0].options
            assert [sample.options for sample in draw] == [(*first[start:], *first[:start]) for start in range(4)]
            assert sorted(sample.right_option for sample in draw) == [0, 1, 2, 3]


def test_options_are_four_digits_with_the_right_one():
    for sample in samples_of(make_questions(CONFIG, "index", 2)):
        assert len(set(sample.options)) == 4 and set(sample.options) <= set("0123456789")
        *named, digit, letter = sample.expected.split()
        assert named == ["Image", f"{sample.target + 1}:"]
        assert sample.options[sample.right_option] == digit
        assert LETTERS[sample.right_option] == letter


def test_one_image_has_no_distractors_and_one_draw():
    questions = make_questions(CONFIG, "colour", 1)
    assert questions.samples_per_question == 4
    assert len(questions.prompts) == 3 * 4


def test_all_numbers_of_images_and_both_namings_ask_the_same_questions():
    asked = [
        [
            (samples[0].pictures[samples[0].target], samples[0].options)
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
    answers = [sample.expected for sample in samples_of(questions)]
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
    answers = [LETTERS[sample.right_option] for sample in samples_of(questions)]
    assert score(questions, answers).circular_accuracy == 1.0


def test_ids_differ():
    config = EvalConfig(distractor_questions=3, distractor_images=(1, 5))
    ids = [prompt.id for prompt in DistractorResistance(config).prompts()]
    assert len(set(ids)) == len(ids) == 2 * 3 * (4 + 8) and ids[:2] == ["colour/1/0/0", "colour/1/0/1"]
