"""Exact match: its questions and its score."""

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation.exact_match import make_questions, score

CONFIG = EvalConfig(questions=5)


def test_questions_follow_from_the_seed():
    again = make_questions(EvalConfig(questions=5), "colour", 7)
    assert make_questions(CONFIG, "colour", 7) == again
    assert make_questions(EvalConfig(questions=5, seed=1), "colour", 7) != again


def test_more_questions_leave_the_first_ones_as_they_are():
    assert make_questions(EvalConfig(questions=11), "colour", 7).prompts[:5] == make_questions(CONFIG, "colour", 7).prompts


def test_both_namings_ask_about_the_same_pictures():
    by_colour, by_index = (make_questions(CONFIG, naming, 7) for naming in ("colour", "index"))
    assert [(p.images, p.target) for p in by_colour.prompts] == [(p.images, p.target) for p in by_index.prompts]
    for colour, index in zip(by_colour.prompts, by_index.prompts, strict=True):
        assert index.expected == colour.expected.split()[1]
    assert by_colour.prompts[0].question != by_index.prompts[0].question


def test_score_counts_whole_answers():
    questions = make_questions(CONFIG, "colour", 2)
    expected = [prompt.expected for prompt in questions.prompts]
    answers = [expected[0], expected[1], "red", expected[3] + " B", ""]
    point = score(questions, answers)
    assert (point.naming, point.images, point.questions, point.right, point.accuracy) == ("colour", 2, 5, 2, 0.4)
    assert point.interval_95[0] < 0.4 < point.interval_95[1]
