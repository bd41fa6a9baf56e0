"""A whole evaluation with made-up answers: the report, the tables, and which samples are shown."""

import dataclasses
import json

import numpy as np
import pytest

from owl3_jax.config import Config, ConfigError, DataConfig, EvalConfig, ModelConfig, VisionConfig
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.evaluation import samples
from owl3_jax.evaluation.evaluate import evaluate, make_question_sets, score_sets
from owl3_jax.evaluation.report import TRAINED_IMAGES, describe, format_table, make_report, percent

VISION = VisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, image_size=8, patch_size=2)
EVAL = EvalConfig(
    questions=3,
    exact_match_images=(2, 1, 23),
    distractor_questions=2,
    distractor_images=(1, 5),
    distractor_draws=2,
    samples_shown=5,
    max_new_tokens=4,
)
CONFIG = Config(model=ModelConfig(vision=VISION), eval=EVAL)
SETS = make_question_sets(EVAL)
TOKENIZER = make_tokenizer()


def always(text: str):
    """A model that answers everything with `text`."""
    ids = [*(TOKENIZER.token_id(word) for word in text.split()), TOKENIZER.stop_ids[0]]
    return lambda batch: np.tile(np.array(ids, np.int32), (len(batch.tokens), 1))


def expected_answers() -> list[list[str]]:
    return [[prompt.expected for prompt in questions.prompts] for questions in SETS]


def test_sets_cover_both_tasks_both_namings_and_all_numbers_of_images_in_order():
    assert [(questions.task, questions.naming, questions.images) for questions in SETS] == [
        *(("exact_match", naming, images) for naming in ("colour", "index") for images in (1, 2, 23)),
        *(("distractor_resistance", naming, images) for naming in ("colour", "index") for images in (1, 5)),
    ]


def test_right_answers_score_everywhere():
    scores = score_sets(SETS, expected_answers())
    assert all(point.accuracy == 1 for point in scores.exact_match)
    assert all(point.circular_accuracy == point.plain_accuracy == 1 for point in scores.distractor_resistance)
    assert len(scores.exact_match) == 6 and len(scores.distractor_resistance) == 4


def test_one_answer_to_everything_is_chance_at_best(tmp_path, capsys):
    scores = evaluate(CONFIG, always("red 7 B"), tmp_path)
    assert all(point.accuracy == 0 for point in scores.exact_match)
    assert all((point.plain_accuracy, point.circular_accuracy) == (0.25, 0.0) for point in scores.distractor_resistance)
    printed = capsys.readouterr().out
    for name in ("report.json", "exact_match.png", "distractor_resistance.png", "samples.png"):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).stat().st_size > 0


def test_the_report_says_what_was_measured_and_how(tmp_path):
    evaluate(CONFIG, always("red 7 B"), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["settings", "trained_images", "exact_match", "distractor_resistance", "samples", "run"]
    assert report["settings"]["seed"] == 0 and report["trained_images"] == list(TRAINED_IMAGES) == [1, 8]
    assert report["exact_match"]["chance"] == 0.1 and report["distractor_resistance"]["plain_chance"] == 0.25
    assert report["exact_match"]["points"][0] == {
        "naming": "colour",
        "images": 1,
        "questions": 3,
        "right": 0,
        "accuracy": 0.0,
        "interval_95": [0.0, 0.561497],
    }
    assert report["distractor_resistance"]["points"][1] == {
        "naming": "colour",
        "images": 5,
        "questions": 2,
        "samples_per_question": 8,
        "circular_right": 0,
        "circular_accuracy": 0.0,
        "circular_interval_95": [0.0, 0.657620],
        "circular_chance": 0.25**8,
        "plain_accuracy": 0.25,
        "answers_without_choice": 0,
    }
    assert any("place X" in line for line in report["distractor_resistance"]["protocol"])
    assert set(report["run"]) == {"device", "jax", "python", "time", "seconds"}


def test_the_same_model_gives_the_same_files(tmp_path):
    files = {}
    for name in ("first", "second"):
        evaluate(CONFIG, always("7 B"), tmp_path / name)
        written = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        files[name] = written | {"report.json": written["report.json"].split(b'"run"')[0]}
    assert files["first"] == files["second"]


def test_another_data_set_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'photographs'"):
        evaluate(dataclasses.replace(CONFIG, data=DataConfig(dataset="photographs")), always("7"), tmp_path)


def test_samples_are_spread_over_sets_with_few_images():
    shown = samples.choose(SETS, expected_answers(), 5)
    assert len(shown) == 5
    assert all(sample.prompt in sample.questions.prompts and sample.is_right for sample in shown)
    assert len({sample.prompt.images for sample in shown}) == 5
    assert all(sample.questions.images <= samples.MOST_IMAGES for sample in shown)
    assert {sample.questions.task for sample in shown} == {"exact_match", "distractor_resistance"}
    assert len(samples.choose(SETS, expected_answers(), 1000)) == 8  # not those with 23 images


def test_a_wrong_sample_is_shown_as_wrong():
    (sample,) = samples.choose(SETS, [["no"] * len(questions.prompts) for questions in SETS], 1)
    card, record = samples.to_card(sample), samples.to_record(sample)
    assert card.is_right is record["right"] is False
    assert card.answer == record["answer"] == "no"
    assert card.title == "by colour · 1 image" and len(card.images) == 1


def test_options_take_one_line_of_a_card():
    sample = samples.choose(SETS, expected_answers(), 1000)[-1]
    first, options = samples.to_card(sample).question.split("\n")
    assert first.startswith("In Image ") and options.startswith("A. ") and options.count("   ") == 3


def test_the_tables_are_aligned_and_complete():
    exact, distractors = describe(score_sets(SETS, expected_answers())).split("\n\n")
    assert "chance 10.0 %" in exact and "circular 0.002 %" in distractors
    for table, images in ((exact, ["1", "2", "23"]), (distractors, ["1", "5"])):
        _, *rows = table.splitlines()
        assert len({len(row) for row in rows}) == 1
        assert [row.split()[0] for row in rows] == ["images", *images]
        assert all(row.count("100.0 %") >= 2 for row in rows[1:])


def test_report_is_the_same_for_equal_scores():
    scores = score_sets(SETS, expected_answers())
    assert make_report(scores, [], EVAL) == make_report(score_sets(SETS, expected_answers()), [], EVAL)


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.123, "12.3 %"), (1.0, "100.0 %"), (0.25**8, "0.002 %")])
def test_percent(share, text):
    assert percent(share) == text


def test_columns_are_aligned_on_the_right():
    assert format_table([["a", "bcd"], ["12", "3"]]) == [" a  bcd", "12    3"]
