"""Settings that check themselves; those of checkpoints as transformers reads them."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.config import ConfigError
from owl3_jax.inference.sampling import NAMED, Sampling

# As the released checkpoints have it.
QWEN2 = {
    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
    "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "transformers_version": "4.37.0",
}  # fmt: skip
WRONG = {
    "max_new_tokens": [0, -1, 1.5, True, "9"],
    "min_new_tokens": [-1, 2.0],
    "temperature": [-0.1, 1e-4, 1e4, float("nan"), float("inf"), "hot", None],
    "top_k": [-1, 2**31, 0.5],
    "top_p": [0.0, 1.01, -1.0, float("nan")],
    "min_p": [-0.01, 1.01],
    "repetition_penalty": [0.0, -1.0, float("inf")],
    "seed": [-1, 2**32, 0.5],
    "n": [0],
    "num_beams": [0, False],
    "length_penalty": [float("nan"), float("-inf")],
    "stop": ["\n", ("",), (1,), {"a": 1}],
    "logprobs": [1, "yes"],
}


@pytest.fixture
def write(tmp_path):
    def write_file(tree: object) -> object:
        (tmp_path / "generation_config.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
        return tmp_path

    return write_file


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(ConfigError) as error:
        Sampling().with_options(**{name: value})
    assert f"sampling option {name} must be " in str(error.value)
    assert str(error.value).endswith(f", got {value!r}")


def test_settings_check_themselves():
    with pytest.raises(ConfigError, match=r"sampling option top_p must be a number above 0 and at most 1 \(off\), got 1\.5"):
        Sampling(top_p=1.5)


def test_every_option_has_limits():
    assert list(WRONG) == list(Sampling.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens 5 must not exceed max_new_tokens 4"),
        ({"num_beams": 2, "temperature": 0.5}, "with num_beams 2 temperature must be 0, got 0.5"),
        ({"num_beams": 2, "n": 3}, "n must be at most num_beams 2, got 3"),
        ({"n": 3}, "n 3 greedy answers would be the same: set a temperature above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


def test_whole_numbers_and_lists_become_what_the_fields_hold():
    sampling = Sampling().with_options(temperature=1, stop=["a", "b"])
    assert (type(sampling.temperature), sampling.stop) == (float, ("a", "b"))
    assert hash(sampling) == hash(Sampling(temperature=1.0, stop=("a", "b")))


def test_named_settings():
    assert Sampling.named("greedy") == Sampling()
    assert NAMED["evaluation"] == Sampling(max_new_tokens=100)
    chat = {"temperature": 0.7, "top_k": 100, "top_p": 0.8, "repetition_penalty": 1.05}
    assert NAMED["chat"] == Sampling(max_new_tokens=2048, **chat)
    assert NAMED["beam"] == Sampling(max_new_tokens=2048, num_beams=3, repetition_penalty=1.2)
    with pytest.raises(ConfigError, match="'sample'; known settings: greedy, evaluation, chat, beam"):
        Sampling.named("sample")


@pytest.mark.parametrize(("name", "penalty"), [("greedy", 1.0), ("evaluation", 1.0), ("chat", 1.05), ("beam", 1.2)])
def test_only_the_official_code_of_the_gated_form_has_repetition_penalties(name, penalty):
    gated = Sampling.named(name, "gated")
    assert gated.repetition_penalty == penalty
    for form in ("static", "joint", None):
        assert Sampling.named(name, form) == dataclasses.replace(gated, repetition_penalty=1.0)


def test_scalars_of_numpy_and_jax_are_numbers():
    options = {"max_new_tokens": np.int64(5), "temperature": np.float64(0.7), "logprobs": np.True_, "seed": jnp.uint32(3)}
    found = Sampling().with_options(**options)
    assert found == Sampling(max_new_tokens=5, temperature=0.7, logprobs=True, seed=3)
    assert [type(value) for value in (found.max_new_tokens, found.temperature, found.logprobs)] == [int, float, bool]
    assert Sampling().with_options(top_p=np.array(0.5)) == Sampling(top_p=0.5)
    for wrong in ({"max_new_tokens": np.float64(5)}, {"max_new_tokens": np.array([5])}, {"n": np.True_}):
        with pytest.raises(ConfigError, match=f"sampling option {next(iter(wrong))} must be a whole number"):
            Sampling().with_options(**wrong)


def test_options_replace_those_there_and_are_checked():
    assert NAMED["chat"].with_options(seed=7, top_k=0) == Sampling(
        max_new_tokens=2048, temperature=0.7, top_p=0.8, repetition_penalty=1.05, seed=7
    )
    with pytest.raises(ConfigError, match="unknown sampling option 'temprature'; did you mean 'temperature'"):
        Sampling().with_options(temprature=1.0)
    with pytest.raises(ConfigError, match=r"unknown sampling option 'zzz'; known options: max_new_tokens, .*, logprobs$"):
        Sampling().with_options(zzz=1)
    with pytest.raises(ConfigError, match="top_p"):
        Sampling().with_options(top_p=2)


def test_a_released_generation_config(write):
    directory = write(QWEN2)
    wanted = Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    assert Sampling.from_generation_config(directory) == wanted
    assert Sampling.from_generation_config(str(directory / "generation_config.json")) == wanted
    assert Sampling.from_generation_config(directory, temperature=0, seed=3).temperature == 0


def test_keys_of_transformers_by_another_name(write):
    tree = {"do_sample": True, "num_return_sequences": 3, "stop_strings": ["a"], "min_p": None, "typical_p": 1.0}
    assert Sampling.from_generation_config(write(tree)) == Sampling(temperature=1.0, top_k=50, n=3, stop=("a",))


@given(
    tree=st.fixed_dictionaries(
        {},
        optional={
            "do_sample": st.booleans(),
            "temperature": st.floats(0.1, 2.0),
            "top_k": st.integers(1, 100),
            "top_p": st.floats(0.1, 1.0),
            "min_p": st.floats(0.0, 1.0),
            "repetition_penalty": st.floats(0.5, 2.0),
        },
    )
)
@settings(deadline=None, max_examples=50)
def test_what_a_file_leaves_out_is_as_in_transformers(tree, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    (directory / "generation_config.json").write_text(json.dumps(tree))
    ours = Sampling.from_generation_config(directory)
    theirs = transformers.GenerationConfig.from_dict(
        tree | transformers.GenerationConfig._get_default_generation_params() | tree
    )
    assert (ours.temperature > 0) == theirs.do_sample
    if theirs.do_sample:
        assert (ours.temperature, ours.top_k, ours.top_p) == (theirs.temperature, theirs.top_k, theirs.top_p)
        assert ours.min_p == (theirs.min_p or 0.0)
    assert ours.repetition_penalty == theirs.repetition_penalty


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"top_p": "much"}, "option top_p must be a number above 0 and at most 1"),
        ({"do_sample": False, "temperature": []}, "option temperature must be a number, 0"),
        ({"num_return_sequences": 0}, "option num_return_sequences must be a whole number of at least 1, got 0"),
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        ({"do_sample": True, "num_beams": 2}, "with num_beams 2 temperature must be 0"),
        ([1], "must hold a JSON object, got list"),
        ("{", "invalid JSON"),
    ],
)
def test_a_wrong_file_is_named(write, tree, message):
    with pytest.raises(ConfigError, match=f"generation_config.json: .*{message}"):
        Sampling.from_generation_config(write(tree))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"generation_config\.json"):
        Sampling.from_generation_config(tmp_path)
