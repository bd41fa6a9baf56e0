"""Scores on the way of a training run are those of `owl3 eval`."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

import owl3_jax
from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, Config, ConfigError, MeshConfig, ValidationConfig
from owl3_jax.convert.load import load_params
from owl3_jax.evaluation.along import TaskScorer
from owl3_jax.evaluation.answering import answer_questions
from owl3_jax.evaluation.asked import Selection, ask_all
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.run import samples_of
from owl3_jax.evaluation.tasks import choose
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.host.command_line import load_config
from owl3_jax.host.signals import StoppedError
from tests.unit.evaluation.toys import EVAL

CHECKPOINT = find_checkpoint("digits")
TASKS, QUESTIONS = ("digits_exact",), 12


@pytest.fixture(scope="module")
def config() -> Config:
    digits = load_config(Path(__file__).parents[3] / "configs/digits.py")
    settings = dataclasses.replace(EVAL, exact_match_images=(1, 2), max_new_tokens=8, vision_batch_size=8, rows_per_batch=6)
    return dataclasses.replace(
        digits,
        compute=ComputeConfig(dtype="float32"),
        mesh=MeshConfig(data=1, fsdp=2),
        validation=ValidationConfig(every=10, tasks=TASKS, questions=QUESTIONS),
        eval=settings,
    )


def test_scores_are_those_of_an_evaluation_of_the_checkpoint(tmp_path: Path, config: Config):
    """The run's parameters are stacked, in float32, split over two devices; the checkpoint's as `owl3 eval` loads them."""
    owl = owl3_jax.from_pretrained("digits", dtype="float32", vision_batch_size=8)
    tasks, data = choose(TASKS).tasks, DataRoot(settings=config.eval)
    asked = ask_all(tasks.values(), data, Selection(QUESTIONS, seed=config.eval.seed))
    records, _ = answer_questions(asked, data, tmp_path / "answers.jsonl", owl.config, owl.processor, lambda: owl.engine)
    scores = tasks["digits_exact"].score([each.answered for each in samples_of(asked, records)])["official"]
    expected = {f"eval/digits_exact/{name}": metric.value for name, metric in scores.items()}
    assert expected["eval/digits_exact/accuracy"] > 80.0

    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    params = load_params(CHECKPOINT, config.model, mesh)
    score = TaskScorer(config, tmp_path)
    for _ in range(2):  # answers of an earlier life are not taken
        assert score(params, mesh, owl.processor, 10, lambda: False) == expected
        samples = [json.loads(line) for line in (tmp_path / "validation" / "10" / "samples.jsonl").read_text().splitlines()]
        assert len(samples) == len(asked)
        (tmp_path / "validation" / "10" / "answers.jsonl").write_text("")
    with pytest.raises(StoppedError):
        score(params, mesh, owl.processor, 20, lambda: True)


def test_a_task_without_answers_is_refused(tmp_path: Path, config: Config):
    validation = dataclasses.replace(config.validation, tasks=("no_such_task",))
    with pytest.raises(ConfigError, match="unknown task 'no_such_task'"):
        TaskScorer(dataclasses.replace(config, validation=validation), tmp_path)
