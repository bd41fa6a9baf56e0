import pytest
from flax.traverse_util import flatten_dict

from owl3_jax.config import Config, ConfigError, DataConfig, LoraConfig, TrainConfig
from owl3_jax.training.frozen import join_params, match_paths, split_params, trained_paths
from tests import tiny

DATA = DataConfig(rows=2, tokens_per_row=13, images_per_row=2)
PARAMS = {"tower": {"layers": {"kernel": 1, "bias": 2}}, "head": {"layers": {"kernel": 3}, "table": 4}}


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ((".*",), PARAMS),
        (("head/.*",), {"head": PARAMS["head"]}),
        ((".*/kernel", "head/table"), {"tower": {"layers": {"kernel": 1}}, "head": PARAMS["head"]}),
        ((r"tower/layers/(kernel|bias)",), {"tower": PARAMS["tower"]}),
    ],
)
def test_patterns_choose_whole_paths(patterns, trained):
    found, frozen = split_params(PARAMS, match_paths(patterns, flatten_dict(PARAMS, sep="/")))
    assert found == trained
    assert join_params(found, frozen) == PARAMS


@pytest.mark.parametrize("pattern", ["kernel", "head", "head/layers", "tower/.*/weight"])
def test_a_pattern_without_a_match_is_refused_with_the_paths(pattern):
    with pytest.raises(ConfigError) as error:
        match_paths((".*/bias", pattern), flatten_dict(PARAMS, sep="/"))
    assert f"{pattern!r} matches no parameter" in str(error.value)
    assert "head/layers/..., head/table, tower/layers/..." in str(error.value)


def test_without_names_everything_is_trained_or_with_lora_the_adapters_alone():
    every = trained_paths(Config(model=tiny.model_config(), data=DATA))
    adapters = trained_paths(Config(model=tiny.model_config(), data=DATA, lora=LoraConfig(rank=2, target=(".*/q_proj",))))
    assert "vision2text_model/linear/kernel" in every and "language_model/layers/mlp/up_proj/kernel" in every
    assert adapters == {
        f"{place}/self_attn/q_proj/lora_{name}" for place in ("language_model/layers", "vision_model/layers") for name in "ab"
    }


@pytest.mark.parametrize(
    "part, inside",
    [
        ("vision", "vision_model/layers/mlp/fc1/kernel"),
        ("projector", "vision2text_model/linear/bias"),
        ("hyper", "language_model/hyper_layers/v_kv_proj/kernel"),
        ("language", "language_model/embed_tokens"),
    ],
)
def test_parts_have_names(part, inside):
    train = TrainConfig(trained=(part,))
    found = trained_paths(Config(model=tiny.model_config(), data=DATA, train=train))
    assert inside in found
    assert len({tuple(path.split("/")[:2]) if part == "hyper" else path.split("/")[0] for path in found}) == 1
    assert part != "language" or not any("hyper_layers" in path for path in found)


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ConfigError, match=r"train\.trained: 'head/\(' is not a regular expression"):
        TrainConfig(trained=("head/(",))
