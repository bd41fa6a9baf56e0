"""The rules table, and the same loss and gradients on eight devices as on one."""

import dataclasses
import functools
import re
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import owl3_jax
from owl3_jax import sharding
from owl3_jax.config import (
    ComputeConfig,
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.training.gradients import make_loss_and_gradients
from owl3_jax.training.step import abstract_state, example_batch, init_state, make_train_step
from tests.tiny import model_config, pack, pad, single, stack
from tests.tolerances import TRAIN_STEP

ONE = MeshConfig(data=1)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=8),
    "fsdp x tensor": MeshConfig(data=1, fsdp=4, tensor=2),
}
# Form, images of a row, tokens of a row, mesh: each form with the images and tokens that its meshes divide or do not.
CASES = [
    ("gated", 5, 32, MeshConfig(data=8)),
    ("gated", 5, 32, MeshConfig(data=1, fsdp=8)),
    ("gated", 5, 32, MeshConfig(data=1, fsdp=2, context=4)),
    ("static", 1, 32, MeshConfig(data=2, context=4)),
    ("static", 1, 32, MeshConfig(data=1, tensor=8)),
    ("joint", 3, 29, MeshConfig(data=1, fsdp=4, context=2)),
    ("joint", 3, 29, MeshConfig(data=1, tensor=4, context=2)),
    ("joint", 3, 29, MeshConfig(slices=2, data=1, fsdp=2, tensor=2)),
]


def config(form="gated", images=5, tokens=29) -> Config:
    """Heads, widths and rows that eight devices divide."""
    model = model_config(form, hidden_size=64, num_attention_heads=16, num_key_value_heads=8, intermediate_size=56)
    vision = dataclasses.replace(model.vision, hidden_size=16, num_attention_heads=8, intermediate_size=26)
    return Config(
        model=dataclasses.replace(model, vision=vision),
        compute=ComputeConfig(dtype="float32", images_per_chunk=2),
        data=DataConfig(rows=8, tokens_per_row=tokens, images_per_row=images),
        # A first step that moves each parameter by about a tenth of its gradient.
        optimizer=OptimizerConfig(learning_rate=0.1, end_learning_rate=0.0, warmup_steps=0, eps=1.0),
        train=TrainConfig(shift_pixels=1),
    )


def boxed_params(form="gated"):
    return abstract_params(config(form).model, config(form).compute)


def batch(images=5, tokens=29):
    """Eight rows: packed, ragged, text only."""
    packed = pack([single(13, [2, 5][:images], seed=1), single(11, [0][: images - 2], seed=2)])
    kinds = [packed, single(23, [3, 4, 9, 11, 20][:images], seed=3), single(7, [], seed=4), single(tokens, [1], seed=5)]
    return stack([pad(sample, tokens, images) for sample in kinds * 2])


def mesh_of(mesh_config: MeshConfig):
    return sharding.make_mesh(mesh_config, jax.devices()[: 1 if mesh_config == ONE else 8])


def pad_vocabulary(run: Config) -> Config:
    return dataclasses.replace(run, compute=dataclasses.replace(run.compute, vocab_multiple=8))


@functools.cache
def initial_values(run: Config):
    return jax.device_get(init_state(run, mesh_of(ONE)).params)


def with_vocabulary_of(params, wanted):
    """`params` with rows of zeros, to the shapes of `wanted`."""
    pad_rows = lambda x, like: np.pad(x, [(0, size - there) for size, there in zip(like.shape, x.shape, strict=True)])
    return jax.tree.map(pad_rows, params, wanted)


@functools.cache
def loss_and_grads(run: Config, mesh_config: MeshConfig):
    mesh = mesh_of(mesh_config)
    abstract = abstract_state(pad_vocabulary(run) if mesh.size > 1 else run, mesh).params
    params = jax.device_put(with_vocabulary_of(initial_values(run), abstract), jax.tree.map(lambda x: x.sharding, abstract))
    rows = sharding.shard_batch(batch(run.data.images_per_row, run.data.tokens_per_row), mesh)
    with sharding.use_mesh(mesh):
        run = pad_vocabulary(run) if mesh.size > 1 else run
        metrics, grads = jax.jit(make_loss_and_gradients(run))(params, rows, jax.random.key(3))
    return float(metrics["loss"]), flatten_dict(jax.device_get(grads), sep="/")


@pytest.mark.parametrize(("form", "images", "tokens", "mesh"), CASES)
def test_loss_and_gradients_equal_those_on_one_device(form, images, tokens, mesh):
    assert jax.device_count() == 8
    run = config(form, images, tokens)
    loss, grads = loss_and_grads(run, mesh)
    expected_loss, expected_grads = loss_and_grads(run, ONE)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for path, expected in expected_grads.items():
        # Measured 5e-6 of the largest entry: sums over devices are taken in another order. The floor is for SigLIP's
        # k_proj/bias: softmax does not feel a shift of all keys, its gradient is zero up to rounding, measured 2e-8.
        scale = max(np.abs(expected).max(), 1e-2)
        padded = with_vocabulary_of(expected, grads[path])  # no gradient where there is no word
        np.testing.assert_allclose(grads[path], padded, atol=1e-5 * scale, err_msg=path)


@functools.cache
def train_step_on(mesh_config: MeshConfig):
    """A state after one step."""
    run, mesh = dataclasses.replace(config(), mesh=mesh_config), mesh_of(mesh_config)
    state, metrics = make_train_step(run, mesh)(init_state(run, mesh), sharding.shard_batch(batch(), mesh))
    assert not bool(metrics["is_bad"]) and int(state.step) == 1
    wanted = jax.tree.map(lambda x: x.sharding, abstract_state(run, mesh))
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted)
    assert all(jax.tree.leaves(same)), "the step keeps the state split as it was"
    return state


def bytes_per_device(tree) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_a_train_step_splits_parameters_and_their_moments_alike():
    state = train_step_on(MESHES["fsdp x tensor"])
    kernel = state.params["language_model"]["layers"]["self_attn"]["q_proj"]["kernel"]  # [N, E, H, D] over fsdp 4, tensor 2
    assert kernel.addressable_shards[0].data.shape == (5, 64 // 4, 16 // 2, 4)
    assert bytes_per_device(state.opt_state) == pytest.approx(2 * bytes_per_device(state.params), rel=0.01)


def test_optimizer_state_alone_can_be_split():
    state, expected = train_step_on(MeshConfig(data=8, shard_optimizer=True)), train_step_on(MESHES["fsdp x tensor"])
    assert bytes_per_device(state.params) == sum(x.nbytes for x in jax.tree.leaves(state.params))
    whole = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert whole / 8 <= bytes_per_device(state.opt_state) < whole / 8 * 1.1  # some dims are 31, 13 and 9
    for own, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=TRAIN_STEP)


def test_free_axes_go_to_the_largest_dim_that_they_divide():
    mesh = sharding.abstract_mesh(MeshConfig(data=8, tensor=2, context=3), 48)
    split = lambda *size, spec: (
        sharding.optimizer_shardings(NamedSharding(mesh, spec), jax.ShapeDtypeStruct(size, np.float32), mesh).spec
    )
    assert split(9, 64, 16, spec=P(None, None, "tensor")) == P(None, "data", "tensor")  # 3 divides the first only
    assert split(480, 48, 96, spec=P()) == P(None, None, ("data", "tensor", "context"))
    assert split(480, 48, spec=P(("tensor", "context"))) == P(("tensor", "context"), "data")
    assert split(16, spec=P(None)) == P(("data", "tensor"))
    assert split(7, spec=P(None)) == P(None)


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
    with pytest.raises(ConfigError, match=r"over 3 slices needs 6 devices, there are 8"):
        sharding.make_mesh(MeshConfig(slices=3))
    few_rows = dataclasses.replace(config(), data=dataclasses.replace(config().data, rows=12))
    with pytest.raises(ConfigError, match="rows 12 is not a multiple"):
        make_train_step(few_rows, mesh_of(MESHES["data"]))
    with pytest.raises(ConfigError, match=r"mesh.tensor 8 does not divide model.num_key_value_heads 2"):
        few_heads = dataclasses.replace(few_rows.model, num_key_value_heads=2)
        make_train_step(dataclasses.replace(config(), model=few_heads), mesh_of(MESHES["tensor"]))


def test_only_the_data_axis_crosses_slices():
    about = {"device_kind": "none that is known", "platform": "gpu", "process_index": 0}
    devices = [mock.Mock(spec=jax.Device, id=number, slice_index=number % 2, **about) for number in range(16)]
    mesh = sharding.make_mesh(MeshConfig(slices=2, data=-1, fsdp=2, tensor=2), devices)
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 2, "context": 1}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert [set(part.flat) for part in slices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ConfigError, match="slices is 1, but the devices form 2 slices"):
        sharding.make_mesh(MeshConfig(), devices)


def test_devices_without_slices_count_as_slices_in_their_order():
    mesh = sharding.make_mesh(MeshConfig(slices=2, data=1, fsdp=-1))
    assert [[device.id for device in part.flat] for part in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


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


@pytest.mark.parametrize(
    ("processes", "rows"),
    [
        ([[[[0]], [[0]], [[1]], [[1]]]], {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}),
        (
            [[[[0], [1]], [[0], [1]], [[2], [3]], [[2], [3]]]],
            {process: [0, 1, 2, 3] if process < 2 else [4, 5, 6, 7] for process in range(4)},
        ),
        ([[[[1]], [[0]], [[1]], [[0]]]], {1: [0, 1, 4, 5], 0: [2, 3, 6, 7]}),  # rows that are not side by side
        ([[[[0], [1]]]], {0: [*range(8)], 1: [*range(8)]}),
    ],
)
def test_processes_make_the_rows_that_they_hold(processes, rows):
    assert {process: sharding.rows_of_process(np.array(processes), process, 8) for process in rows} == rows


def test_rows_must_divide_among_the_devices():
    with pytest.raises(ConfigError, match=r"data\.rows 9 is not a multiple of the mesh's data x fsdp axes \(2\)"):
        sharding.rows_of_process(np.array([[[[0]], [[1]]]]), 0, 9)


def test_processes_that_share_some_of_their_rows_are_refused():
    with pytest.raises(ConfigError, match="divide the devices of a host, or are a multiple of them"):
        sharding.rows_of_process(np.array([[[[0], [0]], [[0], [1]], [[1], [1]]]]), 0, 12)
