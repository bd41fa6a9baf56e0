"""The table against the model's own parameters, and its layout changes against plain loops."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.config import ComputeConfig
from owl3_jax.convert.official import parameter_shapes
from owl3_jax.convert.table import (
    TABLE,
    Entry,
    entries_for,
    from_official,
    official_names,
    official_shape,
    params_to_official,
    row_shape,
    sort_names,
    to_official,
)
from owl3_jax.formats.config_json import form_of
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.released import NAMED_SIZES
from tests.tiny import FORMS, model_config
from tests.unit.convert.checkpoints import golden_tensors


def every_name(config) -> list[str]:
    return [name for entry in entries_for(config) for name in official_names(entry, config)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_has_each_parameter_once(form, tied):
    config = model_config(form, tie_word_embeddings=tied)
    paths = flatten_dict(nn.unbox(abstract_params(config, ComputeConfig())), sep="/").keys()
    assert sorted(entry.path for entry in entries_for(config)) == sorted(paths)
    names = every_name(config)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_parameter_counts_of_the_released_sizes(size):
    config = NAMED_SIZES[size]
    shapes = {entry.path: shape for entry, shape in parameter_shapes(config).items()}
    count = lambda prefix: sum(int(np.prod(shape)) for path, shape in shapes.items() if path.startswith(prefix))
    if size.startswith("7b"):
        v_kv_proj = count("language_model/hyper_layers/v_kv_proj")
        gates = count("language_model/hyper_layers/gate_proj")
        assert v_kv_proj == pytest.approx(14.68e6, rel=1e-3)
        assert gates == (66_048 if config.form == "gated" else 0)
        assert count("vision2text_model") == pytest.approx(4.13e6 if config.form == "gated" else 16.98e6, rel=1e-3)
        extra_rows = 152_064 - config.vocab_size  # of Qwen2-7B's vocabulary
        assert count("language_model") - v_kv_proj - gates == pytest.approx(7.615616512e9 - 2 * extra_rows * 3584, rel=1e-9)


def test_entries_are_found_for_every_golden_name():
    for name, form in (("tiny-240728", "gated"), ("tiny-241014", "static"), ("tiny-241101", "joint")):
        assert form_of(golden_tensors(name)) == form
    assert {form for entry in TABLE for form in entry.forms} == set(FORMS)


def test_names_are_sorted_by_what_they_are():
    config = model_config("gated", tie_word_embeddings=True)
    there = set(every_name(config)) - {"vision2text_model.bias"}
    last = "vision_model.encoder.layers.2.mlp.fc1.weight"
    unused = {last, "vision_model.head.probe", "language_model.model.rotary_emb.inv_freq"}
    strange = {"vision_model.encoder.layers.7.mlp.fc1.weight", "language_model.model.layers.0.self_attn.gate"}
    names = sort_names(there | unused | strange | {"language_model.lm_head.weight"}, config)
    assert names.missing == ("vision2text_model.bias",)
    assert set(names.unused) == unused
    assert set(names.unmapped) == strange
    assert names.tied_head
    untied = sort_names({"language_model.lm_head.weight"}, dataclasses.replace(config, tie_word_embeddings=False))
    assert not untied.tied_head and "language_model.lm_head.weight" not in untied.missing


SIZES = st.integers(1, 5)
ROWS = {
    "same": st.tuples(SIZES, SIZES),
    "vector": st.tuples(SIZES, SIZES, SIZES),
    "linear": st.tuples(SIZES, SIZES, SIZES, SIZES),
    "linear_from_heads": st.tuples(SIZES, SIZES, SIZES),
    "convolution": st.tuples(SIZES, SIZES, SIZES, SIZES),
}


@given(st.sampled_from(sorted(ROWS)), st.data())
def test_layouts_there_and_back(layout, data):
    entry, shape = Entry("a", "b", layout), data.draw(ROWS[layout])
    row = np.arange(np.prod(shape)).reshape(shape)
    tensor = to_official(entry, row)
    assert tensor.shape == official_shape(entry, shape)
    back = from_official(entry, tensor, shape)
    assert np.shares_memory(back, row)  # views, in both directions
    np.testing.assert_array_equal(back, row)


def test_rows_of_an_image_projection_are_heads_of_keys_and_values():
    E, K, D = 5, 3, 2
    entry = next(entry for entry in TABLE if entry.official.endswith("v_kv_proj.weight"))
    tensor = np.arange(K * 2 * D * E).reshape(K * 2 * D, E)
    ours = from_official(entry, tensor, (E, K, 2, D))
    for e, k, c, d in np.ndindex(E, K, 2, D):
        assert ours[e, k, c, d] == tensor[(k * 2 + c) * D + d, e]


def test_output_projection_reads_heads_one_after_the_other():
    E, H, D = 5, 3, 2
    entry = next(
        entry for entry in TABLE if entry.official.endswith("language_model.model.layers.{layer}.self_attn.o_proj.weight")
    )
    tensor = np.arange(E * H * D).reshape(E, H * D)
    ours = from_official(entry, tensor, (H, D, E))
    for h, d, e in np.ndindex(H, D, E):
        assert ours[h, d, e] == tensor[e, h * D + d]


def test_whole_trees_go_to_official_names():
    config = model_config("static")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nn.unbox(abstract_params(config, ComputeConfig())))
    tensors = params_to_official(params, config)
    assert sorted(tensors) == sorted(every_name(config))
    assert tensors["language_model.model.layers.1.self_attn.gate"].shape == (config.hidden_size,)
    for entry, shape in parameter_shapes(config).items():
        for name in official_names(entry, config):
            assert tensors[name].shape == official_shape(entry, row_shape(entry, shape))
