"""A whole evaluation with made-up answers: the report, the tables and the files."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from owl3_jax.config import Config, ConfigError, EvalConfig
from owl3_jax.evaluation.answering import Answers
from owl3_jax.evaluation.run import evaluate, summarize
from owl3_jax.evaluation.tasks import make_tasks
from owl3_jax.evaluation.tasks.digits_prompts import TRAINED_IMAGES
from owl3_jax.formats.weight_files import CheckpointError
from owl3_jax.processing.processor import Prepared
from tests.unit.evaluation.toys import CONFIG as TOY_CONFIG
from tests.unit.evaluation.toys import PROCESSOR, Answering

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny-241014"
EVAL = EvalConfig(
    questions=3,
    exact_match_images=(2, 1, 23),
    distractor_questions=2,
    distractor_images=(1, 5),
    distractor_draws=2,
    samples_shown=5,
    max_new_tokens=4,
)
CONFIG = Config(model=TOY_CONFIG.model, eval=EVAL)
FILES = ("report.json", "exact_match.png", "distractor_resistance.png", "samples.png")


@pytest.fixture
def make_workdir(tmp_path: Path) -> Callable[[str], Path]:
    """Makes folders with a golden checkpoint's files and the tokenizer of the digits."""

    def make(name: str) -> Path:
        shutil.copytree(GOLDEN, tmp_path / name)
        dataclasses.replace(PROCESSOR, image_size=59).save(tmp_path / name)  # the golden model's
        return tmp_path / name

    return make


def always(text: str) -> Callable[[Prepared], str]:
    return lambda prompt: text


def run(workdir: Path, text: str = "red 7 B") -> Path:
    """Evaluates a model that answers everything with `text`."""
    evaluate(CONFIG, workdir, Answering(always(text)).load)
    return workdir / "eval"


def expected_answers() -> Answers:
    return {(task.name, prompt.id): prompt.question.expected for task in make_tasks(EVAL) for prompt in task.prompts()}


def blocks(answers: Answers) -> dict:
    """The blocks of report.json that the tasks fill."""
    return {name: block for task in make_tasks(EVAL) for name, block in summarize(task, answers).report.items()}


def test_all_namings_and_numbers_of_images_are_asked_in_order():
    sets = [(task.name, each.naming, each.images) for task in make_tasks(EVAL) for each in task.sets]
    assert sets == [
        *(("exact_match", naming, images) for naming in ("colour", "index") for images in (1, 2, 23)),
        *(("distractor_resistance", naming, images) for naming in ("colour", "index") for images in (1, 5)),
    ]


def test_right_answers_score_everywhere():
    scores = blocks(expected_answers())
    assert all(point["accuracy"] == 1 for point in scores["exact_match"]["points"])
    choices = scores["distractor_resistance"]["points"]
    assert all(point["circular_accuracy"] == point["plain_accuracy"] == 1 for point in choices)
    assert len(scores["exact_match"]["points"]) == 6 and len(choices) == 4


def test_one_answer_to_everything_is_chance_at_best(make_workdir, capsys):
    directory = run(make_workdir("run"))
    report = json.loads((directory / "report.json").read_text())
    assert all(point["accuracy"] == 0 for point in report["exact_match"]["points"])
    choices = report["distractor_resistance"]["points"]
    assert all((point["plain_accuracy"], point["circular_accuracy"]) == (0.25, 0.0) for point in choices)
    printed = capsys.readouterr().out
    for name in FILES:
        assert f"\n{directory / name}\n" in printed
        assert (directory / name).stat().st_size > 0


def test_the_report_says_what_was_measured_and_how(make_workdir):
    report = json.loads((run(make_workdir("run")) / "report.json").read_text())
    assert list(report) == ["settings", "trained_images", "exact_match", "distractor_resistance", "samples", "run"]
    assert list(report["settings"]) == [
        "questions",
        "exact_match_images",
        "distractor_questions",
        "distractor_images",
        "distractor_draws",
        "max_new_tokens",
        "images_per_batch",
        "batch_shapes",
        "samples_shown",
        "seed",
    ]
    assert report["settings"]["seed"] == 0 and report["trained_images"] == list(TRAINED_IMAGES) == [1, 16]
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
    assert list(report["samples"][0]) == ["task", "naming", "images", "question", "answer", "expected", "right"]


def test_the_same_model_gives_the_same_files(make_workdir):
    files = {}
    for name in ("first", "second"):
        directory = run(make_workdir(name), "7 B")
        written = {path: (directory / path).read_bytes() for path in FILES}
        files[name] = written | {"report.json": written["report.json"].split(b'"run"')[0]}
    assert files["first"] == files["second"]


def test_the_scores_follow_from_the_answers_alone():
    assert blocks(expected_answers()) == blocks(expected_answers())


def test_the_tables_are_aligned_and_complete():
    exact, distractors = (summarize(task, expected_answers()).table for task in make_tasks(EVAL))
    assert "chance 10.0 %" in exact and "circular 0.002 %" in distractors
    for table, images in ((exact, ["1", "2", "23"]), (distractors, ["1", "5"])):
        _, *rows = table.splitlines()
        assert len({len(row) for row in rows}) == 1
        assert [row.split()[0] for row in rows] == ["images", *images]
        assert all(row.count("100.0 %") >= 2 for row in rows[1:])


def test_a_part_of_the_tasks_and_their_order_can_be_chosen():
    assert [task.name for task in make_tasks(EvalConfig(tasks=("distractor_resistance",)))] == ["distractor_resistance"]
    with pytest.raises(ConfigError, match=r"eval\.tasks: unknown task 'gqa'; known tasks: exact_match, distractor_resis"):
        make_tasks(EvalConfig(tasks=("exact_match", "gqa")))
    with pytest.raises(ConfigError, match=r"eval\.tasks is empty"):
        EvalConfig(tasks=())


def test_a_folder_without_a_checkpoint_is_an_error_that_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="train first"):
        run(tmp_path)
