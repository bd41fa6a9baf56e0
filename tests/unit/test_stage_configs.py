"""The configs of the paper's stages: its numbers, what they train at real size, and a real run at a tiny one."""

import dataclasses
import functools
import math
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from owl3_jax.config import Config, ConfigError
from owl3_jax.convert.directories import to_hugging_face
from owl3_jax.convert.load import load_params
from owl3_jax.data.sources import open_source, prepare_sources
from owl3_jax.host.command_line import load_config, parse
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.released import NAMED_SIZES
from owl3_jax.sharding import make_mesh
from owl3_jax.training.checkpoint import SavedRunError
from owl3_jax.training.frozen import split_params, trained_paths
from owl3_jax.training.loop import train
from owl3_jax.training.step import abstract_state

CONFIGS = Path(__file__).parents[2] / "configs"
# rows, tokens, images, peak and last learning rate, steps, warm-up steps (3 % of them): the table of the paper
PAPER = {
    1: (2048, 768, 1, 1e-3, 1e-5, 20_000, 600),
    2: (1024, 4096, 7, 2e-5, 1e-7, 3_000, 90),
    3: (1024, 4096, 7, 2e-5, 1e-7, 11_000, 330),
}


def stage(number: int, size: str) -> Config:
    return load_config(f"{CONFIGS}/stage{number}.py:{size}")


@pytest.mark.parametrize("size", NAMED_SIZES)
@pytest.mark.parametrize("number", PAPER)
def test_a_stage_has_the_numbers_of_the_paper(number, size):
    config = stage(number, size)
    data, optimizer = config.data, config.optimizer
    assert config.model == NAMED_SIZES[size]
    shape, rates = (data.rows, data.tokens_per_row, data.images_per_row), (optimizer.learning_rate, optimizer.end_learning_rate)
    assert (*shape, *rates, config.train.steps, optimizer.warmup_steps) == PAPER[number]


MIXTURE = {1: (8, 35.2, 26.1), 2: (7, 34.6, 19.3), 3: (8, 58.0, 12.5)}  # sources, and the two largest in per cent: the paper


@pytest.mark.parametrize("number", PAPER)
def test_a_mixture_is_its_stage_on_other_data(number):
    config, plain = load_config(f"{CONFIGS}/mixtures.py:{number}/7b-240728"), stage(number, "7b-240728")
    weights = sorted((source.weight for source in config.data.sources), reverse=True)
    assert (len(weights), *weights[:2]) == MIXTURE[number]
    assert sum(weights) == pytest.approx(100, abs=0.15)  # the paper rounds
    assert dataclasses.replace(config, data=plain.data) == plain
    assert all((source.max_frames or 0) <= config.data.images_per_row for source in config.data.sources)


def test_a_mixture_without_its_data_names_the_first_path_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(f"{CONFIGS}/mixtures.py:3/7b-240728")
    with pytest.raises(ConfigError, match=r"mixtures/llava-sft-665k"):
        prepare_sources(config.data)
        open_source(config.data.sources[0], config.data)


def test_an_unknown_stage_is_an_error():
    with pytest.raises(ConfigError, match="'4/7b-240728' names no stage: give STAGE/SIZE with a stage of 1, 2, 3"):
        load_config(f"{CONFIGS}/mixtures.py:4/7b-240728")


def count(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# Of 7B: linear projector, `v_kv_proj` of four layers and their gates; the language model has 7.614 billion beside these.
PROJECTOR_AND_HYPER_LAYERS = (1152 * 3584 + 3584) + 4 * (3584 * 1024 + 1024) + 66_048


@pytest.mark.parametrize(("number", "language_model"), [(1, 0.0), (2, 7.614e9), (3, 7.614e9)])
def test_what_a_stage_trains_of_7b(number, language_model):
    config = stage(number, "7b-240728")
    trained, frozen = split_params(nn.unbox(abstract_params(config.model, config.compute)), trained_paths(config))
    assert count(trained) - PROJECTOR_AND_HYPER_LAYERS == pytest.approx(language_model, rel=1e-4)
    assert "vision_model" in frozen and "vision_model" not in trained


def test_the_state_of_stage_1_of_7b_is_small():
    """12 bytes a trained parameter, with its moments, and 2 a frozen one."""
    config = stage(1, "7b-240728")
    state = abstract_state(config, make_mesh(config.mesh))
    size = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim)
    frozen = count(state.params) - PROJECTOR_AND_HYPER_LAYERS
    assert size == 12 * PROJECTOR_AND_HYPER_LAYERS + 2 * frozen


TINY = {
    "model.hidden_size": 16,
    "model.intermediate_size": 24,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 1,
    "model.vocab_size": 48,
    "model.vision.hidden_size": 8,
    "model.vision.intermediate_size": 12,
    "model.vision.num_hidden_layers": 2,
    "model.vision.num_attention_heads": 2,
    "model.vision.image_size": 8,
    "model.vision.patch_size": 4,
    "data.rows": 16,
    "data.tokens_per_row": 64,
    "train.steps": 2,
    "train.microbatches": 2,
    "train.loss_chunk": 32,
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """None."""


def tiny(name: str) -> Config:
    """The config as `train.py` takes it from a command line that makes it small."""
    overrides = [f"--config.{field}={value}" for field, value in TINY.items()]
    config, _ = parse(Flags, [f"--config={CONFIGS / name}", *overrides, "--config.model.hyper_layers", "2"])
    return config


def test_stage_1_runs_and_leaves_a_checkpoint_like_any_other(tmp_path, capsys):
    config = tiny("stage1.py:1b-241014")
    state = train(config, tmp_path / "run")
    frozen = count(split_params(state.params, trained_paths(config))[1])
    printed = capsys.readouterr().out
    assert f"{frozen:,} of them frozen" in printed and "finished: step 2 of 2" in printed

    load = functools.partial(load_params, config=config.model, vocab_multiple=config.compute.vocab_multiple)
    saved, params = load(tmp_path / "run"), jax.device_get(state.params)
    assert jax.tree.map(lambda x: x.dtype, saved) == jax.tree.map(lambda x: x.dtype, params)
    jax.tree.map(np.testing.assert_array_equal, saved, params)
    to_hugging_face(tmp_path / "run", tmp_path / "official")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "official"), params)

    # It can be resumed, but not with other trained parts.
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    assert int(train(longer, tmp_path / "run").step) == 3
    other = dataclasses.replace(longer, train=dataclasses.replace(longer.train, trained=(".*",)))
    with pytest.raises(SavedRunError, match=r"train\.trained: .* there, \('\.\*',\) in this run"):
        train(other, tmp_path / "run")
