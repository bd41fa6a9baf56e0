import pytest

from owl3_jax.config import ConfigError, TrainConfig
from owl3_jax.training.frozen import join_params, split_params

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
    found, frozen = split_params(PARAMS, patterns)
    assert found == trained
    assert join_params(found, frozen) == PARAMS


@pytest.mark.parametrize("pattern", ["kernel", "head", "head/layers", "tower/.*/weight"])
def test_a_pattern_without_a_match_is_refused_with_the_paths(pattern):
    with pytest.raises(ConfigError) as error:
        split_params(PARAMS, (".*/bias", pattern))
    assert f"{pattern!r} matches no parameter" in str(error.value)
    assert "head/layers/..., head/table, tower/layers/..." in str(error.value)


def test_a_run_that_trains_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"train\.trained is empty"):
        TrainConfig(trained=())


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(ConfigError, match=r"train\.trained: 'head/\(' is not a regular expression"):
        TrainConfig(trained=("head/(",))
