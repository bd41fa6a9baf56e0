"""Answers to the prompts of all tasks: in few batch sizes, resumed from a file, whatever fails."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from owl3_jax.config import Config, ConfigError, EvalConfig
from owl3_jax.evaluation.answering import Answers, FailedPrompts, answer_prompts
from owl3_jax.evaluation.task import AnyTask
from owl3_jax.evaluation.tasks.digits_exact import ExactMatch
from tests.unit.evaluation.toys import CONFIG, PROCESSOR, Answering, Counting, count_images, make_workdir, save_image

COUNTS = tuple(np.random.default_rng(0).permutation([1, 2, 3, 5, 7, 11, 19] * 6).tolist())


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return make_workdir(tmp_path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save_image(tmp_path / "grey.png")


def answer(workdir: Path, model: Answering, *tasks: AnyTask, config: Config = CONFIG) -> Answers:
    return answer_prompts(config, workdir, tasks, PROCESSOR, model.load)


def answer_file(workdir: Path) -> Path:
    (path,) = (workdir / "eval").glob("answers-*.jsonl")
    return path


def with_eval(**changes: object) -> Config:
    return dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, **changes))


@pytest.mark.parametrize("divisor", [1, 2, 5])
def test_every_prompt_gets_its_answer_in_batches_of_few_sizes(workdir, image, divisor, capsys):
    model, task = Answering(count_images, divisor), Counting(COUNTS, image)
    assert answer(workdir, model, task) == {("counting", str(i)): str(count) for i, count in enumerate(COUNTS)}
    sizes = {size for _, size in model.batches}
    assert model.prompts == len(COUNTS) and len(sizes) <= 3
    assert all(rows % divisor == 0 for rows, _ in sizes)
    assert all(rows * row.images <= 24 or rows == divisor for rows, row in sizes)
    assert f"answered {len(COUNTS)}/{len(COUNTS)} questions" in capsys.readouterr().out


def test_more_shapes_mean_less_padding(workdir, image):
    padded = {}
    for shapes in (1, 2, 7):
        model, place = Answering(count_images), make_workdir(workdir / str(shapes))
        answer(place, model, Counting(COUNTS, image), config=with_eval(batch_shapes=shapes))
        assert len({size for _, size in model.batches}) <= shapes
        padded[shapes] = sum(rows * row.images for _, (rows, row) in model.batches)
    assert padded[1] > padded[2] > padded[7]


def test_few_prompts_make_no_large_batch(workdir):
    model = Answering(count_images)
    task = ExactMatch(EvalConfig(questions=3, exact_match_images=(1,)))
    answer(workdir, model, task, config=with_eval(batch_shapes=1))
    assert model.batches == [(6, (6, (32, 1)))]


def test_tasks_share_their_batches(workdir, image):
    model, tasks = Answering(count_images), [Counting((1, 1), image), Counting((1, 1, 1), image, "counting again")]
    assert len(answer(workdir, model, *tasks)) == 5
    assert [prompts for prompts, _ in model.batches] == [5]


def test_an_evaluation_that_was_killed_resumes_and_asks_nothing_twice(workdir, image):
    task, stopped, resumed = Counting(COUNTS, image), Answering(count_images, stop_after=3), Answering(count_images)
    with pytest.raises(KeyboardInterrupt):
        answer(workdir, stopped, task)
    assert len(stopped.batches) == 3
    path = answer_file(workdir)
    path.write_bytes(path.read_bytes()[:-5])  # within the last line
    answers = answer(workdir, resumed, task)
    assert answers == {("counting", str(i)): str(count) for i, count in enumerate(COUNTS)}
    assert stopped.prompts - 1 + resumed.prompts == len(COUNTS)

    def load() -> None:
        raise AssertionError("nothing is left to be asked")

    assert answer_prompts(CONFIG, workdir, [task], PROCESSOR, load) == answers


def test_progress_counts_what_was_answered_before(workdir, image, capsys):
    answer(workdir, Answering(count_images), Counting((1, 2), image))
    answer(workdir, Answering(count_images), Counting((1, 2, 3), image))
    first, reused, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("answered 2/2 questions", "answered 3/3 questions")
    assert reused.startswith("2 of 3 answers are taken from ")


def test_answers_of_another_checkpoint_are_not_taken(workdir, image):
    task = Counting((1, 2), image)
    answer(workdir, Answering(lambda prompt: "old"), task)
    os.utime(workdir / "model.safetensors", (1, 1))
    assert set(answer(workdir, Answering(lambda prompt: "new"), task).values()) == {"new"}
    assert len(list((workdir / "eval").glob("answers-*.jsonl"))) == 2


def test_a_prompt_that_has_changed_is_asked_again_and_no_other(workdir, image, tmp_path):
    answer(workdir, Answering(lambda prompt: "old"), Counting((1, 2), image))
    model = Answering(lambda prompt: "new")
    assert list(answer(workdir, model, Counting((1, 3), image)).values()) == ["old", "new"]
    save_image(image, level=7)
    os.utime(image, (1, 1))
    assert set(answer(workdir, model, Counting((1, 3), image)).values()) == {"new"}
    assert model.prompts == 3


def test_a_prompt_that_fails_costs_no_other_and_is_retried_alone(workdir, image, tmp_path):
    torn = tmp_path / "torn photograph.png"
    torn.write_bytes(image.read_bytes()[:40])
    tasks = [Counting(COUNTS, image), Counting((1, 2, 1, 1), torn, "torn")]
    with pytest.raises(FailedPrompts) as failed:
        answer(workdir, Answering(count_images), *tasks)
    message = str(failed.value)
    assert message.startswith(f"4 of {len(COUNTS) + 4} prompts failed: torn/")
    assert message.count("cannot read image 0 (") == 3 and "torn photograph.png" in message and "; ..." in message
    assert "run the same command again" in message
    records = [json.loads(line) for line in answer_file(workdir).read_text().splitlines()]
    assert len(records) == len(COUNTS) and all("answers" in record for record in records)

    save_image(torn)
    again = Answering(count_images)
    assert len(answer(workdir, again, *tasks)) == len(COUNTS) + 4
    assert again.prompts == 4


def test_a_prompt_beyond_the_models_positions_is_an_error_before_the_model_is_loaded(workdir, image):
    model, data = (
        dataclasses.replace(CONFIG.model, max_position_embeddings=31),
        dataclasses.replace(CONFIG.data, tokens_per_row=29),
    )
    config = dataclasses.replace(CONFIG, model=model, data=data)
    with pytest.raises(ConfigError, match=r"max_position_embeddings is 31; name fewer images"):
        answer_prompts(config, workdir, [Counting(COUNTS, image)], PROCESSOR, lambda: pytest.fail("was loaded"))


def test_prompts_with_the_same_id_are_an_error(workdir, image):
    with pytest.raises(ValueError, match="task counting has several prompts with the id '0'"):
        answer(workdir, Answering(count_images), Counting((1,), image), Counting((2,), image))
