"""Answers to the questions of all tasks: in few batch sizes, resumed from a file, whatever fails."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from owl3_jax.config import EvalConfig, ModelConfig
from owl3_jax.evaluation.answering import Spent, answer_questions
from owl3_jax.evaluation.asked import Selection, ask_all
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.task import Task
from owl3_jax.evaluation.tasks.digits_exact import DIGITS_EXACT
from tests.unit.evaluation.toys import EVAL, MODEL, PROCESSOR, Answering, count_images, counting, save_image

COUNTS = tuple(np.random.default_rng(0).permutation([1, 2, 3, 5, 7, 11, 19] * 6).tolist())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "answers.jsonl"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save_image(tmp_path / "grey.png")


def records(path: Path, model: Answering, *tasks: Task, settings: EvalConfig = EVAL, config: ModelConfig = MODEL) -> dict:
    data = DataRoot(settings=settings)
    return answer_questions(ask_all(tasks, data, Selection()), data, path, config, PROCESSOR, model.load)[0]


def answers(*arguments: object, **options: object) -> dict:
    found = records(*arguments, **options)
    return {key: record["answers"][0]["text"] for key, record in found.items() if "answers" in record}


def with_eval(**changes: object) -> EvalConfig:
    return dataclasses.replace(EVAL, **changes)


@pytest.mark.parametrize("divisor", [1, 2, 5])
def test_every_question_gets_its_answer_in_batches_of_few_sizes(path, image, divisor, capsys):
    model, task = Answering(count_images, divisor), counting(COUNTS, image)
    assert answers(path, model, task) == {("counting", str(i)): str(count) for i, count in enumerate(COUNTS)}
    sizes = {size for _, size in model.batches}
    assert model.prompts == len(COUNTS) and len(sizes) <= 3
    assert all(rows % divisor == 0 for rows, _ in sizes)
    assert all(rows * row.images <= 24 or rows == divisor for rows, row in sizes)
    assert f"answered {len(COUNTS)}/{len(COUNTS)} questions" in capsys.readouterr().out


def test_more_shapes_mean_less_padding(path, image):
    padded = {}
    for shapes in (1, 2, 7):
        model = Answering(count_images)
        answers(path.with_name(f"{shapes}.jsonl"), model, counting(COUNTS, image), settings=with_eval(batch_shapes=shapes))
        assert len({size for _, size in model.batches}) <= shapes
        padded[shapes] = sum(rows * row.images for _, (rows, row) in model.batches)
    assert padded[1] > padded[2] > padded[7]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_rows_of_a_batch_can_be_bounded(path, image, rows):
    model = Answering(count_images)
    answers(path, model, counting((1,) * 20, image), settings=with_eval(rows_per_batch=rows))
    assert max(prompts for prompts, _ in model.batches) == rows


def test_few_questions_make_no_large_batch(path):
    model, settings = Answering(count_images), with_eval(batch_shapes=1, questions=3, exact_match_images=(1,))
    answers(path, model, DIGITS_EXACT, settings=settings)
    assert model.batches == [(6, (6, (32, 1)))]


def test_tasks_share_their_batches(path, image):
    model, tasks = Answering(count_images), [counting((1, 1), image), counting((1, 1, 1), image, "counting again")]
    assert len(answers(path, model, *tasks)) == 5
    assert [prompts for prompts, _ in model.batches] == [5]


def test_an_evaluation_that_was_killed_resumes_and_asks_nothing_twice(path, image):
    task, stopped, resumed = counting(COUNTS, image), Answering(count_images, stop_after=3), Answering(count_images)
    with pytest.raises(KeyboardInterrupt):
        answers(path, stopped, task)
    assert len(stopped.batches) == 3
    path.write_bytes(path.read_bytes()[:-5])  # within the last line
    found = answers(path, resumed, task)
    assert found == {("counting", str(i)): str(count) for i, count in enumerate(COUNTS)}
    assert stopped.prompts - 1 + resumed.prompts == len(COUNTS)
    idle = Answering(lambda prompt: pytest.fail("nothing is left to be asked"))
    assert answers(path, idle, task) == found


def test_progress_counts_what_was_answered_before(path, image, capsys):
    answers(path, Answering(count_images), counting((1, 2), image))
    answers(path, Answering(count_images), counting((1, 2, 3), image))
    first, reused, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("answered 2/2 questions", "answered 3/3 questions")
    assert reused.startswith("2 of 3 answers are taken from ")


def test_the_rest_is_forecast_after_a_few_batches(path, image, capsys):
    answers(path, Answering(count_images), counting((1,) * 20, image), settings=with_eval(rows_per_batch=2))
    assert "about 0 s more for 14 questions" in capsys.readouterr().out


def test_a_question_that_has_changed_is_asked_again_and_no_other(path, image):
    answers(path, Answering(lambda prompt: "old"), counting((1, 2), image))
    model = Answering(lambda prompt: "new")
    assert answers(path, model, counting((1, 3), image)) == {("counting", "0"): "old", ("counting", "1"): "new"}
    save_image(image, level=7)
    os.utime(image, (1, 1))
    assert set(answers(path, model, counting((1, 3), image)).values()) == {"new"}
    assert model.prompts == 3
    answers(path, model, counting((1, 3), image), settings=with_eval(max_new_tokens=6))
    answers(path, model, counting((1, 3), image), settings=with_eval(crop=True))
    assert model.prompts == 7


def test_a_question_that_fails_costs_no_other_and_is_retried_alone(path, image, tmp_path):
    torn = tmp_path / "torn photograph.png"
    torn.write_bytes(image.read_bytes()[:40])
    tasks = [counting(COUNTS, image), counting((1, 2, 1, 1), torn, "torn"), counting((1,), tmp_path / "none.png", "lost")]
    found = records(path, Answering(count_images), *tasks)
    failed = {key: record["error"] for key, record in found.items() if "error" in record}
    assert set(failed) == {*(("torn", str(number)) for number in range(4)), ("lost", "0")}
    assert "torn photograph.png" in failed["torn", "0"] and "none.png" in failed["lost", "0"]
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(written) == len(COUNTS) and all("answers" in record for record in written)

    save_image(torn)
    save_image(tmp_path / "none.png")
    again = Answering(count_images)
    assert len(answers(path, again, *tasks)) == len(COUNTS) + 5
    assert again.prompts == 5


def test_a_question_beyond_the_models_positions_fails_alone(path, image):
    few = dataclasses.replace(MODEL, max_position_embeddings=31)
    model = Answering(count_images)
    model.engine.runtime.config = few
    found = records(path, model, counting((1, 200), image), config=few)
    assert found["counting", "0"]["answers"][0]["text"] == "1"
    assert "the model has 31 positions" in found["counting", "1"]["error"]


def test_what_the_answers_cost_is_counted(path, image):
    data = DataRoot(settings=EVAL)
    asked = ask_all([counting((1, 2, 5), image)], data, Selection())
    _, spent = answer_questions(asked, data, path, MODEL, PROCESSOR, Answering(count_images).load)
    assert (spent.questions, spent.images, spent.tokens) == (3, 8, 3)
    assert set(spent.to_json()["shares"]) == {"media", "vision", "prefill", "decode"}
    _, nothing = answer_questions(asked, data, path, MODEL, PROCESSOR, Answering(count_images).load)
    assert nothing == Spent()
