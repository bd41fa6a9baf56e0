import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from owl3_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessorConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
    load_json_tree,
    parse_dtype,
)
from owl3_jax.released import NAMED_SIZES


@pytest.mark.parametrize("name", NAMED_SIZES)
def test_a_config_survives_json(name: str) -> None:
    config = Config(model=NAMED_SIZES[name], eval=EvalConfig(exact_match_images=(3, 7)))
    assert load_json_tree(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_json_with_an_unknown_field_is_refused() -> None:
    tree = dataclasses.asdict(Config())
    tree["train"]["stps"] = 5
    with pytest.raises(ConfigError, match=r"TrainConfig has no field stps; it has steps, "):
        load_json_tree(Config, tree)


def test_json_without_a_later_field_or_section_takes_its_default() -> None:
    tree = dataclasses.asdict(Config())
    del tree["train"]["checkpoints_to_keep"], tree["processor"]
    assert load_json_tree(Config, tree) == Config()


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (VisionConfig, {"hidden_size": 10, "num_attention_heads": 3}, "vision.hidden_size 10 is not a multiple"),
        (VisionConfig, {"num_hidden_layers": 1}, "vision.num_hidden_layers must be at least 2"),
        (VisionConfig, {"image_size": 13}, "at least one patch"),
        (ModelConfig, {"hidden_size": 3585}, "hidden_size 3585 is not a multiple of num_attention_heads 28"),
        (ModelConfig, {"num_key_value_heads": 5}, "num_attention_heads 28 is not a multiple of num_key_value_heads 5"),
        (ModelConfig, {"hidden_size": 28 * 3}, "head size 3 must be even"),
        (ModelConfig, {"hyper_layers": ()}, "hyper_layers is empty"),
        (ModelConfig, {"hyper_layers": (0, 4)}, r"hyper_layers \(0, 4\) must be increasing numbers from 1"),
        (ModelConfig, {"hyper_layers": (4, 4)}, r"hyper_layers \(4, 4\)"),
        (ModelConfig, {"hyper_layers": (4, 29)}, r"num_hidden_layers \(28\)"),
        (MeshConfig, {"data": -1, "fsdp": -1}, "at most one mesh axis"),
        (MeshConfig, {"tensor": 0}, "mesh axes must be positive or -1"),
        (ProcessorConfig, {"tokenizer": ""}, "processor.tokenizer is empty"),
        (ProcessorConfig, {"max_frames": 0}, "ProcessorConfig.max_frames must be positive, got 0"),
        (DataConfig, {"rows": 0}, "DataConfig.rows must be positive, got 0"),
        (SourceConfig, {"path": "a.json", "weight": float("inf")}, "the weight of a.json must be positive and finite"),
        (
            SourceConfig,
            {"path": "a.json", "loss_weight": float("nan")},
            "loss_weight of a.json must be finite and not negative",
        ),
        (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (OptimizerConfig, {"learning_rate": 1e-3, "end_learning_rate": 1e-2}, "end_learning_rate must be in"),
        (OptimizerConfig, {"warmup_steps": -1}, "warmup_steps must not be negative"),
        (TrainConfig, {"log_every": 0}, "TrainConfig.log_every must be positive"),
        (TrainConfig, {"shift_pixels": -1}, "train.shift_pixels must not be negative, got -1"),
        (EvalConfig, {"distractor_images": (0, 5)}, "eval.distractor_images must name image counts of at least 1"),
        (EvalConfig, {"exact_match_images": ()}, "eval.exact_match_images"),
        (Config, {"data": DataConfig(tokens_per_row=40000)}, "data.tokens_per_row 40000 exceeds"),
    ],
)
def test_settings_that_cannot_work_are_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)


def test_derived_sizes() -> None:
    model = NAMED_SIZES["7b-240728"]
    assert model.head_dim == 128
    assert model.hyper_layer_indices == (0, 8, 16, 24)
    assert model.vision.num_used_layers == 26
    assert model.vision.grid == 27  # the last 6 of 384 pixels are dropped
    assert model.vision.tokens_per_image == 729


@pytest.mark.parametrize(("form", "own_token_sees", "offset"), [("gated", False, 1), ("static", False, 1), ("joint", True, 0)])
def test_what_a_form_means_for_its_images(form: Any, own_token_sees: bool, offset: int) -> None:
    config = ModelConfig(form=form)
    assert config.image_is_seen_by_its_own_token is own_token_sees
    assert config.image_rope_offset == offset


BFLOAT16 = [
    "bfloat16",
    "bf16",
    "BF16",
    "torch.bfloat16",
    jnp.bfloat16,
    jnp.dtype("bfloat16"),
    ml_dtypes.bfloat16,
    torch.bfloat16,
]
FLOAT32 = ["float32", "fp32", "f32", "float", np.float32, jnp.float32, np.dtype(np.float32), torch.float32]


def test_a_dtype_is_known_by_every_common_name_and_object() -> None:
    assert {parse_dtype(value) for value in BFLOAT16} == {"bfloat16"}
    assert {parse_dtype(value) for value in FLOAT32} == {"float32"}
    assert parse_dtype(None) is parse_dtype("auto") is None


@pytest.mark.parametrize("value", ["float16", "half", "fp16", np.float16, torch.float16, "float64", "int8", "", 16, "x" * 9999])
def test_another_dtype_is_refused_with_those_that_exist(value: object) -> None:
    with pytest.raises(ConfigError, match=r"dtype '.{0,40}' is not available; it must be bfloat16, float32 or auto\..*65504"):
        parse_dtype(value)
