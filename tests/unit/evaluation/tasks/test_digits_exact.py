"""Exact match: its questions and its score."""

import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.task import Scored
from owl3_jax.evaluation.tasks.digits_exact import ExactMatch, make_point, make_questions

CONFIG = EvalConfig(questions=5)


def test_questions_follow_from_the_seed():
    again = make_questions(EvalConfig(questions=5), "colour", 7)
    assert make_questions(CONFIG, "colour", 7) == again
    assert make_questions(EvalConfig(questions=5, seed=1), "colour", 7) != again


def test_more_questions_leave_the_first_ones_as_they_are():
    assert make_questions(EvalConfig(questions=11), "colour", 7).prompts[:5] == make_questions(CONFIG, "colour", 7).prompts


def shown(questions):
    return [(prompt.question.pictures, prompt.question.target) for prompt in questions.prompts]


def test_both_namings_ask_about_the_same_pictures():
    by_colour, by_index = (make_questions(CONFIG, naming, 7) for naming in ("colour", "index"))
    assert shown(by_colour) == shown(by_index)
    for colour, index in zip(by_colour.prompts, by_index.prompts, strict=True):
        digit = colour.question.expected.split()[1]
        assert index.question.expected == f"Image {index.question.target + 1}: {digit}"
        assert index.images == colour.images
    assert by_colour.prompts[0].question.text != by_index.prompts[0].question.text


def test_score_counts_whole_answers():
    questions = make_questions(CONFIG, "colour", 2)
    expected = [prompt.question.expected for prompt in questions.prompts]
    answers = [expected[0], expected[1], "red", expected[3] + " B", ""]
    asked = [prompt.question for prompt in questions.prompts]
    task = ExactMatch(CONFIG)
    point = make_point("colour", 2, [Scored(*each, task.score(*each)) for each in zip(asked, answers, strict=True)])
    assert (point.naming, point.images, point.questions, point.right, point.accuracy) == ("colour", 2, 5, 2, 0.4)
    assert point.interval_95[0] < 0.4 < point.interval_95[1]


def test_ids_differ_and_more_images_than_are_held_out_is_an_error():
    ids = [prompt.id for prompt in ExactMatch(CONFIG).prompts()]
    assert len(set(ids)) == len(ids) == 2 * 8 * 5 and ids[:2] == ["colour/1/0", "colour/1/1"]
    with pytest.raises(ConfigError, match=r"eval\.exact_match_images names 360 images, but only 359"):
        ExactMatch(EvalConfig(exact_match_images=(1, 360)))
