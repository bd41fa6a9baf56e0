"""config.json and back: what it may leave out, what it must not ask for, and the form that the tensors imply."""

import json

import pytest

from owl3_jax.config import ModelConfig, VisionConfig
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.config_json import config_json_of, model_from_config_json, with_dtype
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
        ("{}", "config.json: it has no 'hyper_layers'"),
        ("[]", r"config.json: it is \[\]; it must be an object"),
        ("null", "config.json: it is null; it must be an object"),
        ('"text"', 'config.json: it is "text"; it must be an object'),
        ("[" * 100000, "config.json: .* nested too deeply"),
        ('{"hyper_layers": [3, 1]}', "increasing numbers"),
        ('{"hyper_layers": 3}', "config.json: hyper_layers is 3; it must be a list of integers"),
        ('{"hyper_layers": "13"}', 'config.json: hyper_layers is "13"; it must be a list of integers'),
        ('{"hyper_layers": null}', "config.json: hyper_layers is null; it must be a list of integers"),
        ('{"hyper_layers": [1, 2.0]}', r"config.json: hyper_layers\[1\] is 2.0; it must be an integer"),
        ('{"hyper_layers": [true]}', r"config.json: hyper_layers\[0\] is true; it must be an integer"),
        ('{"hyper_layers": [1], "rope_scaling": "yarn"}', 'json: rope_scaling is "yarn"; it must be an object'),
        ('{"hyper_layers": [1], "rope_scaling": []}', r"json: rope_scaling is \[\]; it must be an object"),
        ('{"hyper_layers": [1], "rope_parameters": {"rope_theta": "1e6"}}', 'json: rope_theta is "1e6"; it must be a finite'),
        ('{"hyper_layers": [1], "vision_config": [384]}', r"json: vision_config is \[384\]; it must be an object"),
        ('{"hyper_layers": [1], "vision_config": {"image_size": "56"}}', 'vision_config.image_size is "56"; it must be an int'),
        ('{"hyper_layers": [1], "hidden_size": "64"}', 'json: hidden_size is "64"; it must be an integer'),
        ('{"hyper_layers": [1], "hidden_size": 1e3}', "json: hidden_size is 1000.0; it must be an integer"),
        ('{"hyper_layers": [1], "vocab_size": 99999999999}', "json: vocab_size is 99999999999; it must be an integer up to"),
        ('{"hyper_layers": [1], "rms_norm_eps": NaN}', "json: rms_norm_eps is NaN; it must be a finite number"),
        ('{"hyper_layers": [1], "rope_theta": 1e999}', "json: rope_theta is Infinity; it must be a finite number"),
        ('{"hyper_layers": [1], "rope_theta": 1' + "0" * 400 + "}", "json: rope_theta is 10{59}[.]{3}; it must be a finite"),
        ('{"hyper_layers": [1], "tie_word_embeddings": "false"}', 'tie_word_embeddings is "false"; it must be true or false'),
        ('{"hyper_layers": [1], "use_sliding_window": "no"}', 'use_sliding_window is "no"; it must be true or false'),
        ('{"hyper_layers": [1], "rope_scaling": {"type": "yarn", "factor": 4.0}}', "json: rope_scaling of type 'yarn' is not"),
        ('{"hyper_layers": [1], "rope_scaling": {"rope_type": "linear", "factor": 2.0}}', "rope_scaling of type 'linear'"),
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


def test_a_config_in_another_encoding_or_that_cannot_be_opened_is_named(tmp_path):
    directory = edited(tmp_path / "latin", lambda tensors: None)
    (directory / "config.json").write_bytes('{"name": "Ä"}'.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json: it is not UTF-8: .* at byte 10"):
        load_config(directory)
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json: it cannot be read: Is a directory"):
        load_config(directory)


def test_a_byte_order_mark_is_read_over(tmp_path):
    directory = edited(tmp_path / "marked", lambda tensors: None)
    before, path = load_config(directory), directory / "config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_config(directory) == before


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": 1}, {"a": 1, "torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        (
            {"torch_dtype": "float16", "dtype": "float32", "vision_config": {"dtype": None, "deeper": {"torch_dtype": "x"}}},
            {
                "torch_dtype": "bfloat16",
                "dtype": "bfloat16",
                "vision_config": {"dtype": "bfloat16", "deeper": {"torch_dtype": "bfloat16"}},
            },
        ),
        ({"vision_config": {"dtype": "x"}}, {"vision_config": {"dtype": "bfloat16"}, "torch_dtype": "bfloat16"}),
    ],
)
def test_every_dtype_key_says_the_new_dtype(tree, expected):
    assert with_dtype(tree, "bfloat16") == expected


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
