"""The held-out loss on the way of a run."""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from owl3_jax import sharding
from owl3_jax.config import Config, ConfigError, DataConfig, MeshConfig, SourceConfig, TrainConfig, ValidationConfig
from owl3_jax.data.pipeline import make_train_iterator
from owl3_jax.host.signals import StoppedError
from owl3_jax.training.gradients import make_loss_and_gradients
from owl3_jax.training.processor import make_processor
from owl3_jax.training.step import init_state
from owl3_jax.training.validation import HeldOutLoss, Validation
from tests.tiny import COMPUTE, model_config

BATCHES = 3
NEVER = lambda: False


def write_source(folder: Path, name: str, answer: str) -> str:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (11, 11), "red").save(folder / "red.png")
    turns = [
        [{"role": "user", "content": f"<image>Which {number}?"}, {"role": "assistant", "content": answer}]
        for number in range(5)
    ]
    lines = [json.dumps({"messages": messages, "images": ["red.png"]}) for messages in turns]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("heldout")
    sources = (SourceConfig(write_source(folder, "a.jsonl", "seven")), SourceConfig(write_source(folder, "b.jsonl", "red")))
    return Config(
        model=dataclasses.replace(model_config(), vocab_size=97, num_hidden_layers=2, hyper_layers=(2,)),
        compute=COMPUTE,
        mesh=MeshConfig(data=2),
        data=DataConfig(sources=(SourceConfig("synthetic"),), rows=4, tokens_per_row=64, images_per_row=2),
        train=TrainConfig(shift_pixels=1, loss_chunk=10),
        validation=ValidationConfig(every=3, sources=sources, batches=BATCHES),
    )


@pytest.fixture(scope="module")
def mesh(config: Config) -> jax.sharding.Mesh:
    return sharding.make_mesh(config.mesh, jax.devices()[:2])


@pytest.fixture(scope="module")
def params(config: Config, mesh: jax.sharding.Mesh) -> object:
    return init_state(config, mesh).params


def with_microbatches(config: Config, count: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=count))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_it_is_the_loss_of_the_train_step_on_held_out_batches(config, mesh, params, microbatches):
    """By another way: with gradients, without mesh and microbatches, without augmentation."""
    run = dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=config.validation.sources), train=TrainConfig(loss_chunk=10)
    )
    loss = jax.jit(make_loss_and_gradients(run))
    whole = jax.device_get(params)
    with contextlib.closing(make_train_iterator(run.data, make_processor(config))) as batches:
        found = [jax.device_get(loss(whole, next(batches), jax.random.key(0))[0]) for _ in range(BATCHES)]
    weights = [each["target_tokens"] for each in found]
    of_source = np.array([each["source_losses"] for each in found])
    source_weights = np.array([each["source_target_tokens"] for each in found])
    expected = {
        "heldout/loss": np.average([each["loss"] for each in found], weights=weights),
        "heldout/accuracy": np.average([each["accuracy"] for each in found], weights=weights),
        f"heldout/loss/{config.validation.sources[0].label}": np.average(of_source[:, 0], weights=source_weights[:, 0]),
        f"heldout/loss/{config.validation.sources[1].label}": np.average(of_source[:, 1], weights=source_weights[:, 1]),
    }
    evaluate = HeldOutLoss(with_microbatches(config, microbatches), mesh, make_processor(config))
    values = evaluate(params, NEVER)
    assert values == pytest.approx(expected, rel=1e-5)
    assert evaluate(params, NEVER) == values, "the same batches every time"


def test_it_stops_between_batches_when_the_run_has_to(config, mesh, params):
    evaluate, questions = HeldOutLoss(config, mesh, make_processor(config)), iter([False, True])
    with pytest.raises(StoppedError):
        evaluate(params, functools.partial(next, questions))
    assert list(questions) == []


def test_scores_of_tasks_join_it(config, mesh):
    def scorer(params, mesh, processor, step, must_stop):
        return {"eval/toy/accuracy": 12.5 * step}

    tasks = dataclasses.replace(config, validation=ValidationConfig(every=3, tasks=("toy",)))
    validate = Validation(tasks, mesh, make_processor(config), scorer)
    assert [step for step in range(1, 8) if validate.is_due(step)] == [3, 6]
    assert validate({}, 6, NEVER) == {"eval/toy/accuracy": 75.0}
    with pytest.raises(ConfigError, match="without a scorer"):
        Validation(tasks, mesh, make_processor(config), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 5}, "name validation.sources or validation.tasks"),
        ({"tasks": ("pope",)}, "need validation.every"),
        ({"every": 0, "tasks": ("pope",)}, "validation.every must be positive, got 0"),
        ({"every": 5, "tasks": ("pope",), "questions": 0}, "questions must be positive"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        ValidationConfig(**settings)


def test_a_moving_average_has_to_be_kept_before_it_can_be_evaluated():
    validation = ValidationConfig(every=5, tasks=("pope",), ema=True)
    with pytest.raises(ConfigError, match=r"set train\.ema_decay"):
        Config(validation=validation)
    assert Config(train=TrainConfig(ema_decay=0.9), validation=validation).validation.ema


@pytest.mark.parametrize("best", ["loss", "heldout/loss"])
def test_the_best_checkpoint_is_by_a_metric_of_the_validation(best):
    with pytest.raises(ConfigError, match=r"train\.keep_best"):
        Config(train=TrainConfig(keep_best=best), validation=ValidationConfig(every=5, tasks=("pope",)) if best == "loss" else
               ValidationConfig())  # fmt: skip
