"""The rules table, and the same loss and gradients on eight devices as on one."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

import owl3_jax
from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, Config, ConfigError, DataConfig, MeshConfig, ModelConfig, TrainConfig
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.training.step import abstract_state, example_batch, init_state, loss_fn, make_train_step
from tests.tiny import model_config, pack, pad, single, stack

ONE = MeshConfig(data=1)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "data x fsdp x tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "data x context": MeshConfig(data=4, context=2),
}


def config(form="gated") -> Config:
    """Heads, widths and rows that eight devices divide; the vocabulary (31) they don't."""
    model = model_config(form, hidden_size=64, num_attention_heads=16, num_key_value_heads=8, intermediate_size=56)
    vision = dataclasses.replace(model.vision, hidden_size=16, num_attention_heads=8, intermediate_size=24)
    return Config(
        model=dataclasses.replace(model, vision=vision),
        compute=ComputeConfig(dtype="float32", images_per_chunk=2),
        data=DataConfig(rows=8, tokens_per_row=29, images_per_row=5),
        train=TrainConfig(shift_pixels=1),
    )


def boxed_params(form="gated"):
    return abstract_params(config(form).model, config(form).compute)


def batch():
    """Eight rows: packed, ragged, text only."""
    packed = pack([single(13, [2, 5], seed=1), single(11, [0], seed=2)])
    kinds = [packed, single(23, [3, 4, 9, 11, 20], seed=3), single(7, [], seed=4), single(29, [1], seed=5)]
    return stack([pad(sample, 29, 5) for sample in kinds * 2])


def mesh_of(mesh_config: MeshConfig):
    return sharding.make_mesh(mesh_config, jax.devices()[: 1 if mesh_config == ONE else 8])


def loss_and_grads(run: Config, mesh_config: MeshConfig):
    mesh = mesh_of(mesh_config)
    state = init_state(run, mesh)
    with sharding.use_mesh(mesh):
        value = jax.jit(jax.value_and_grad(loss_fn(run), has_aux=True))
        (loss, _), grads = value(state.params, state, sharding.shard_batch(batch(), mesh))
    return float(loss), flatten_dict(jax.device_get(grads), sep="/")


@pytest.fixture(scope="module")
def on_one_device():
    return loss_and_grads(config(), ONE)


@pytest.mark.parametrize("mesh", list(MESHES))
def test_loss_and_gradients_equal_those_on_one_device(mesh, on_one_device):
    assert jax.device_count() == 8
    loss, grads = loss_and_grads(config(), MESHES[mesh])
    expected_loss, expected_grads = on_one_device
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, expected in expected_grads.items():
        # Measured 3e-6 of the largest entry: sums over devices are taken in another order. The floor is for SigLIP's
        # k_proj/bias: softmax does not feel a shift of all keys, its gradient is zero up to rounding, measured 2e-8.
        scale = max(np.abs(expected).max(), 1e-2)
        np.testing.assert_allclose(grads[path], expected, atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize("form", ["static", "joint"])
def test_the_other_forms_on_fsdp_x_tensor(form):
    loss, _ = loss_and_grads(config(form), MESHES["fsdp x tensor"])
    expected, _ = loss_and_grads(config(form), ONE)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_train_step_keeps_the_state_split_as_it_was():
    mesh = mesh_of(MESHES["fsdp x tensor"])
    state = init_state(config(), mesh)
    state, metrics = make_train_step(config(), mesh)(state, sharding.shard_batch(batch(), mesh))
    assert bool(metrics["finite"]) and int(state.step) == 1
    wanted = jax.tree.map(lambda x: x.sharding, abstract_state(config(), mesh))
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)
    assert all(jax.tree.leaves(same))
    kernel = state.params["language_model"]["layers"]["self_attn"]["q_proj"]["kernel"]  # [N, E, H, D] over fsdp 4, tensor 2
    assert kernel.addressable_shards[0].data.shape == (5, 64 // 4, 16 // 2, 4)
    moments = jax.tree.leaves(state.opt_state)
    assert any(x.shape == kernel.shape and x.addressable_shards[0].data.size == kernel.size // 8 for x in moments)


def test_every_axis_name_that_a_model_uses_has_a_rule():
    names = {name for name, _ in sharding.RULES}
    boxed = jax.tree.leaves(boxed_params("joint"), is_leaf=lambda x: hasattr(x, "names"))
    used = {name for box in boxed for name in box.names}
    source = "".join(path.read_text() for path in (Path(owl3_jax.__file__).parent / "models").glob("*.py"))
    constrained = {
        name for call in re.findall(r"constrain\([\w.]+, \(([^)]*)\)", source) for name in re.findall(r'"(\w+)"', call)
    }
    assert len(used) > 10 and len(constrained) > 5
    assert used | constrained <= names
    assert len(names) == len(sharding.RULES), "an axis has two rules"


def test_a_name_without_a_rule_is_an_error():
    from owl3_jax.models.layers import constrain

    with sharding.use_mesh(mesh_of(MESHES["fsdp"])), pytest.raises(ValueError, match="embd"):
        jax.jit(lambda x: constrain(x, ("batch", "embd")))(np.zeros((8, 8), np.float32))


def test_an_axis_that_does_not_divide_a_dim_leaves_it_whole():
    mesh = mesh_of(MESHES["fsdp x tensor"])
    specs = flatten_dict(sharding.param_shardings(boxed_params(), mesh), sep="/")
    assert specs["language_model/embed_tokens"].spec == P(None, "fsdp")  # 31 rows over 2
    assert specs["language_model/layers/mlp/up_proj/kernel"].spec == P(None, "fsdp", "tensor")


def test_one_printed_line_per_parameter():
    mesh = mesh_of(MESHES["fsdp x tensor"])
    lines = sharding.describe(boxed_params(), mesh)
    assert len(lines) == len(jax.tree.leaves(abstract_state(config(), mesh).params))
    (line,) = [line for line in lines if line.startswith("language_model/layers/self_attn/o_proj/kernel ")]
    path, shape, *names, split = re.split(r"\s+(?![^(]*\))", line)
    assert (path, shape) == ("language_model/layers/self_attn/o_proj/kernel", "5x16x4x64")
    assert (names, split) == (["layers", "heads", "head_dim", "embed"], "P(None, 'tensor', None, 'fsdp')")


def test_a_mesh_that_does_not_fit_is_an_error():
    with pytest.raises(ConfigError, match="needs 6 devices, there are 8"):
        sharding.make_mesh(MeshConfig(data=3, tensor=2))
    with pytest.raises(ConfigError, match="there are 8"):
        sharding.make_mesh(MeshConfig(data=-1, tensor=3))
    assert sharding.make_mesh(MeshConfig(data=-1, tensor=2)).shape == {"data": 4, "fsdp": 1, "tensor": 2, "context": 1}
    few_rows = dataclasses.replace(config(), data=dataclasses.replace(config().data, rows=12))
    with pytest.raises(ConfigError, match="rows 12 is no multiple"):
        make_train_step(few_rows, mesh_of(MESHES["data"]))
    with pytest.raises(ConfigError, match=r"mesh.tensor 8 does not divide model.num_key_value_heads 2"):
        few_heads = dataclasses.replace(few_rows.model, num_key_value_heads=2)
        make_train_step(dataclasses.replace(config(), model=few_heads), mesh_of(MESHES["tensor"]))


def test_full_7b_train_step_lowers_with_one_scanned_body():
    """Shapes of stage 3, nothing allocated."""
    run = Config(
        model=ModelConfig(),
        compute=ComputeConfig(remat="full"),
        data=DataConfig(rows=8, tokens_per_row=4096, images_per_row=16),
        mesh=MESHES["fsdp x tensor"],
    )
    mesh = mesh_of(run.mesh)
    text = make_train_step(run, mesh).lower(abstract_state(run, mesh), example_batch(run)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "18944" in line]
    # The MLP has three matrix products: three forward, two of them recomputed, six backward. That is one body each way:
    # 28 layers written out would be 308.
    assert len(products) == 11
    assert text.count("tensor<28x3584x18944xf32>") > 0, "the parameters are stacked"
