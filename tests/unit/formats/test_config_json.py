"""config.json and back: what it may leave out, what it must not ask for, and the form that the tensors imply."""

import json

import pytest

from owl3_jax.config import ModelConfig, VisionConfig
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.config_json import config_json_of, model_from_config_json
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.released import NAMED_SIZES
from tests.unit.convert.checkpoints import GOLDEN, change_config, edited


@pytest.mark.parametrize("name", NAMED_SIZES)
def test_config_json_and_back(name: str) -> None:
    config = NAMED_SIZES[name]
    tree = json.loads(json.dumps(config_json_of(config)))
    assert "form" not in tree
    assert model_from_config_json(tree, config.form) == config


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no config.json"),
        ("{", "config.json: "),
        ("{}", "config.json has no 'hyper_layers'"),
        ('{"hyper_layers": [3, 1]}', "increasing numbers"),
        ('{"hyper_layers": 3}', "config.json: "),
        ('{"hyper_layers": [1], "rope_scaling": {"type": "yarn", "factor": 4.0}}', r"json: rope_scaling .*'yarn'.* is not"),
        ('{"hyper_layers": [1], "rope_scaling": {"rope_type": "linear", "factor": 2.0}}', "rope_scaling .*'linear'"),
        ('{"hyper_layers": [1], "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}', "'yarn'"),
        ('{"hyper_layers": [1], "use_sliding_window": true}', "use_sliding_window is not supported"),
        ('{"hyper_layers": [1], "hidden_act": "gelu"}', "hidden_act 'gelu' is not supported"),
    ],
)
def test_config_that_describes_no_model(tmp_path, content, problem):
    directory = edited(tmp_path / "broken", lambda tensors: None)
    (directory / "config.json").unlink()
    if content:
        (directory / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=problem):
        load_config(directory)


def test_newer_configs_keep_the_base_of_rope_among_its_parameters(tmp_path):
    directory = edited(tmp_path / "newer", lambda tensors: None)
    tree = json.loads((directory / "config.json").read_text())
    tree["rope_parameters"] = {"rope_type": "default", "rope_theta": tree.pop("rope_theta", 1) + 77}
    (directory / "config.json").write_text(json.dumps(tree))
    assert load_config(directory).rope_theta == tree["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize("vision", [{}, None, {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}])
def test_what_config_json_leaves_out_is_as_released_and_unknown_keys_are_ignored(tmp_path, vision):
    directory = edited(tmp_path / "sparse", lambda tensors: None)
    change_config(directory, vision_config=vision, auto_map={"AutoModel": "some.Code"}, rope_theta=10000, rope_scaling=None)
    config = load_config(directory)
    assert config.vision == VisionConfig() == ModelConfig().vision
    assert (config.rope_theta, config.hidden_size) == (10000, 64)


def test_head_size_must_be_even(tmp_path):
    directory = edited(tmp_path / "odd", lambda tensors: None)
    change_config(directory, hidden_size=60, num_attention_heads=4)
    with pytest.raises(CheckpointError, match=r"config\.json: head size 15 must be even for RoPE"):
        load_config(directory)


def test_config_of_each_golden_form():
    for name, form in (("tiny-240728", "gated"), ("tiny-tied", "gated"), ("tiny-241014", "static"), ("tiny-241101", "joint")):
        config = load_config(GOLDEN / name)
        assert isinstance(config, ModelConfig) and config.form == form
        assert config.tie_word_embeddings == (name in ("tiny-tied", "tiny-241014"))
