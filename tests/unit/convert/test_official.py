"""An official directory is taken whole or refused with everything that is wrong with it."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl3_jax.convert.official import Parameter, open_checkpoint
from owl3_jax.convert.table import Entry, official_shape, to_official
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import Tensor
from tests.unit.convert.checkpoints import GOLDEN, change_config, edited, golden_tensors

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def error_of(directory) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(directory, load_config(directory))
    return str(error.value)


def test_one_error_lists_everything(tmp_path):
    def edit(tensors):
        del tensors["vision2text_model.bias"], tensors["language_model.model.layers.3.mlp.up_proj.weight"]
        tensors["vision2text_model.scale"] = np.zeros(3, np.float32)
        tensors["language_model.model.norm.weight"] = np.ones((1, 64), np.float32)
        name = "language_model.model.layers.2.self_attn.q_proj.bias"
        tensors[name] = tensors[name].astype(np.float16)

    message = error_of(edited(tmp_path / "broken", edit))
    for line in (
        "vision2text_model.bias: missing",
        "language_model.model.layers.3.mlp.up_proj.weight: missing",
        "vision2text_model.scale: in model.safetensors, but not a tensor of this model",
        "language_model.model.norm.weight: shape [1, 64], expected [64]",
        "language_model.model.layers.2.self_attn.q_proj.bias: dtype float16",
    ):
        assert line in message
    assert len(message.splitlines()) == 6


def test_mixed_dtypes_are_cast_when_asked(tmp_path):
    name = "language_model.model.layers.2.self_attn.q_proj.bias"
    directory = edited(tmp_path / "mixed", lambda tensors: tensors.update({name: tensors[name].astype(np.float64)}))
    checkpoint = open_checkpoint(directory, load_config(directory), np.dtype(ml_dtypes.bfloat16))
    bias = checkpoint.parameters["language_model/layers/self_attn/q_proj/bias"].read()
    expected = golden_tensors()[name].astype(ml_dtypes.bfloat16)
    assert bias.dtype == expected.dtype
    np.testing.assert_array_equal(bias[2].reshape(-1), expected)


def test_hyper_layers_elsewhere_than_the_config_says(tmp_path):
    directory = edited(tmp_path / "moved", lambda tensors: None)
    change_config(directory, hyper_layers=[1, 3, 4])
    message = error_of(directory)
    assert "hyper_layers are [1, 3, 4], but the tensors are those of [1, 3, 5]" in message
    assert "language_model.model.layers.3.self_attn.v_kv_proj.bias: missing" in message
    assert "language_model.model.layers.4.self_attn.v_kv_proj.bias: in model.safetensors, but not a tensor" in message


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_float_dtype_is_kept(tmp_path, dtype):
    cast = lambda tensors: tensors.update({name: tensor.astype(dtype) for name, tensor in tensors.items()})
    directory = edited(tmp_path / "cast", cast, "tiny-241014")
    parameters = open_checkpoint(directory, load_config(directory)).parameters
    assert {parameter.read().dtype for parameter in parameters.values()} == {np.dtype(dtype)}
    gate = golden_tensors("tiny-241014")["language_model.model.layers.3.self_attn.gate"].astype(dtype)
    np.testing.assert_array_equal(parameters["language_model/hyper_layers/gate"].read()[1].reshape(-1), gate)


def test_tied_head_may_stand_there_too(tmp_path):
    directory = edited(tmp_path / "twice", lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].copy()}), "tiny-tied")
    checkpoint = open_checkpoint(directory, load_config(directory))
    assert checkpoint.tied_head
    assert "language_model/lm_head" not in checkpoint.parameters


def test_tied_head_must_be_the_embedding(tmp_path):
    directory = edited(tmp_path / "differs", lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + 1}), "tiny-tied")
    assert f"{HEAD}: differs from {EMBEDDING}" in error_of(directory)


def test_unused_tensors_are_known_and_buffers_ignored(tmp_path):
    buffer = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    directory = edited(tmp_path / "buffer", lambda tensors: tensors.update({buffer: np.ones(8, np.float32)}))
    unused = {tensor.name for tensor in open_checkpoint(directory, load_config(directory)).unused}
    never_read = ("vision_model.encoder.layers.3", "vision_model.post_layernorm", "vision_model.head")
    assert unused == {buffer, *(name for name in golden_tensors() if name.startswith(never_read))}


SLICES = st.builds(slice, *(st.none() | st.integers(0, 6) for _ in range(2)))


@given(st.tuples(SLICES, SLICES, SLICES, SLICES))
def test_any_part_of_a_stack_can_be_read(index):
    entry, shape = Entry("layers.{layer}.weight", "layers/kernel", "linear"), (3, 5, 2, 4)
    whole = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    rows = [to_official(entry, row) for row in whole]
    tensor = lambda row: Tensor("", GOLDEN, row.dtype, official_shape(entry, shape[1:]), lambda: row)
    parameter = Parameter(entry, shape, whole.dtype, tuple(map(tensor, rows)))
    np.testing.assert_array_equal(parameter.read(index), whole[index])
