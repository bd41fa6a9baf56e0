import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from owl3_jax import sharding
from owl3_jax.config import (
    ComputeConfig,
    Config,
    ConfigError,
    DataConfig,
    GroupConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from owl3_jax.host.command_line import load_config
from owl3_jax.training.optimizer import learning_rate_schedule, make_optimizer
from owl3_jax.training.step import (
    abstract_state,
    example_batch,
    init_state,
    make_step_checksums,
    make_train_step,
    nonfinite_tensors,
)
from tests.tiny import model_config, pack, pad, single

CONFIG = Config(
    model=model_config(),
    compute=ComputeConfig(dtype="float32", images_per_chunk=2),
    mesh=MeshConfig(data=1),
    data=DataConfig(rows=1, tokens_per_row=29, images_per_row=5),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0),
    train=TrainConfig(steps=20),
)
BATCH = jax.tree.map(jnp.asarray, pad(pack([single(13, [2, 5], seed=1), single(11, [0], seed=2)]), 29, 5))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(CONFIG.mesh, jax.devices()[:1])


@pytest.fixture(scope="module")
def step(mesh):
    return make_train_step(CONFIG, mesh)


def test_training_on_one_batch_learns_it(mesh, step):
    state = init_state(CONFIG, mesh)
    losses = []
    for _ in range(20):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    assert (int(metrics["tokens"]), int(metrics["images"])) == (24, 3)
    assert int(state.step) == 20


def test_a_broken_step_changes_nothing_and_is_named(mesh, step):
    state, _ = step(init_state(CONFIG, mesh), BATCH)
    state.params["vision2text_model"]["linear"]["bias"] = state.params["vision2text_model"]["linear"]["bias"].at[3].set(jnp.nan)
    before = jax.device_get((state.params, state.opt_state))
    state, metrics = step(state, BATCH)
    assert metrics["is_bad"] and int(metrics["bad_steps"]) == 1
    after = jax.device_get((state.params, state.opt_state))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    named = nonfinite_tensors(CONFIG, mesh)(state, BATCH)
    assert "params/vision2text_model/linear/bias" in named
    assert [path for path in named if path.startswith("params")] == ["params/vision2text_model/linear/bias"]


def test_checksums_of_a_step_are_those_of_what_it_makes(mesh):
    """The same twice; another number, or a bit more in one parameter, is noticed. The state stays as it was."""
    sums_of, state = make_step_checksums(CONFIG, mesh), init_state(CONFIG, mesh)
    first, second = jax.device_get((sums_of(state, BATCH), sums_of(state, BATCH)))
    assert first == second and {"params.language_model.norm.scale", "loss"} < set(first)
    scale = state.params["language_model"]["norm"]["scale"]
    state.params["language_model"]["norm"]["scale"] = scale.at[5].set(jnp.nextafter(scale[5], 2.0))
    other = jax.device_get(sums_of(state, BATCH))
    assert other["params.language_model.norm.scale"] != first["params.language_model.norm.scale"]


def test_the_schedule_warms_up_and_ends_at_its_minimum():
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1e-3, end_learning_rate=1e-5, warmup_steps=10), 100)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 55, 100)], [0, 5e-4, 1e-3, 5.05e-4, 1e-5], atol=1e-9)


def test_weight_decay_is_for_matrices_only(mesh):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5))
    optimizer = make_optimizer(config.optimizer, 10)
    fill = lambda value: jax.tree.map(lambda x: np.full(x.shape, value, np.float32), abstract_state(config, mesh).params)
    params, zeros = fill(1), fill(0)
    updates, _ = jax.jit(lambda: optimizer.update(zeros, optimizer.init(params), params))()
    decayed = {"/".join(k.key for k in path): float(u.max()) for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    for path, update in decayed.items():
        is_matrix = path.endswith(("kernel", "embed_tokens", "lm_head", "position_embedding"))
        assert update == (-0.5 if is_matrix else 0.0), path


def test_gradients_are_clipped_by_their_global_norm():
    """With b1 = 0 and a huge eps, Adam's update is lr * gradient / eps."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, clip_norm=0.5, b1=0.0, eps=1e6)
    optimizer, params = make_optimizer(config, 10), {"bias": jnp.zeros(4)}
    updates, _ = optimizer.update({"bias": jnp.full(4, 3.0)}, optimizer.init(params), params)
    np.testing.assert_allclose(jnp.linalg.norm(updates["bias"]) * 1e6, 0.5, rtol=1e-5)


# ---- frozen parts

STAGE_1 = load_config(Path(__file__).parents[3] / "configs/stage1.py:1b-241014").train.trained
VISION = ("vision_model/.*",)


def with_train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def is_in_stage_1(path):
    return path.startswith(("vision2text_model/", "language_model/hyper_layers/"))


@pytest.mark.parametrize(
    ("patterns", "is_trained"),
    [(STAGE_1, is_in_stage_1), (VISION, lambda path: path.startswith("vision_model/"))],
    ids=["stage 1", "vision"],
)
def test_only_the_chosen_parts_are_trained(mesh, patterns, is_trained):
    config = with_train(trained=patterns)
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    before = flatten_dict(jax.device_get(state.params), sep="/")
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for path, x in before.items() if is_trained(path)), "only they have optimizer state"
    for _ in range(2):
        state, metrics = step(state, BATCH)
    assert not bool(metrics["is_bad"]) and float(metrics["grad_norm"]) > 0
    for path, after in flatten_dict(jax.device_get(state.params), sep="/").items():
        assert after.dtype == (jnp.float32 if is_trained(path) else jnp.bfloat16), path
        assert np.array_equal(after, before[path]) != is_trained(path), path


@pytest.mark.parametrize(("patterns", "products"), [(STAGE_1, 2), (VISION, 6)])
def test_a_frozen_vision_tower_has_no_backward_pass(mesh, patterns, products):
    """Its MLP, 13 wide, has two matrix products going forward and four going back."""
    config = with_train(trained=patterns)
    text = make_train_step(config, mesh).lower(abstract_state(config, mesh), example_batch(config)).as_text()
    assert len(re.findall(r"dot_general.*[<x]13x.*", text)) == products


def test_a_step_never_holds_the_logits_of_a_whole_row(mesh):
    config = with_train(loss_chunk=10)
    text = make_train_step(config, mesh).lower(abstract_state(config, mesh), example_batch(config)).as_text()
    shapes = [tuple(map(int, dims.split("x")[:-1])) for dims in re.findall(r"tensor<([\dx]+x)f32>", text)]
    # Of arrays over the vocabulary (31 rows), all but the tables and their gradients (42 wide).
    assert max(np.prod(shape) for shape in shapes if 31 in shape and 42 not in shape) == 10 * 31


def test_rows_that_do_not_divide_into_microbatches_are_refused(mesh):
    with pytest.raises(ConfigError, match=r"data.rows 1 is not a multiple of .* \(1\) times train.microbatches \(2\)"):
        make_train_step(with_train(microbatches=2), mesh)


# ---- optimizers, schedules and groups


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "linear"}, {0: 0, 10: 1e-3, 55: 5.05e-4, 100: 1e-5}),
        ({"schedule": "constant"}, {0: 0, 5: 5e-4, 10: 1e-3, 99: 1e-3}),
        ({"schedule": "wsd", "decay_share": 0.2}, {5: 5e-4, 10: 1e-3, 80: 1e-3, 90: 5.05e-4, 100: 1e-5}),
    ],
)
def test_schedules_by_name(schedule, expected):
    config = OptimizerConfig(learning_rate=1e-3, end_learning_rate=1e-5, warmup_steps=10, **schedule)
    rate = learning_rate_schedule(config, 100)
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), atol=1e-9)


TWO_ROWS = jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH)


def losses_of(name, devices):
    rate = {"lion": 1e-3, "sgd": 0.3}.get(name, 1e-2)
    config = dataclasses.replace(
        CONFIG,
        optimizer=OptimizerConfig(name=name, learning_rate=rate, end_learning_rate=rate, warmup_steps=0, weight_decay=0.01),
        data=dataclasses.replace(CONFIG.data, rows=2),
        mesh=MeshConfig(data=1, fsdp=devices),
    )
    mesh, losses = sharding.make_mesh(config.mesh, jax.devices()[:devices]), []
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    for _ in range(4):
        state, metrics = step(state, sharding.shard_batch(TWO_ROWS, mesh))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("name", ["lion", "sgd"])
def test_optimizers_by_name_lower_the_loss(name):
    losses = losses_of(name, 1)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_optimizers_with_a_state_of_other_shapes_do_the_same_on_a_mesh(name):
    losses = losses_of(name, 2)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, losses_of(name, 1), rtol=2e-4)


def test_muon_takes_whole_matrices_and_leaves_the_rest_to_adam(mesh):
    settings = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0, clip_norm=1e9)
    optimizer = make_optimizer(settings, 10)
    shapes = abstract_state(dataclasses.replace(CONFIG, optimizer=settings), mesh).params
    fill = lambda seed: jax.tree.map(lambda x: np.random.default_rng(seed).normal(size=x.shape).astype(np.float32), shapes)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(fill(0), fill(1))
    flat = {"/".join(k.key for k in path): np.asarray(u) for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    path = "language_model/layers/self_attn/q_proj/kernel"
    gradient = flatten_dict(fill(1), sep="/")[path]
    for layer, raw in zip(flat[path], gradient, strict=True):  # nearly orthogonal: the singular values are alike
        spread = lambda x: float(np.divide(*np.quantile(np.linalg.svd(x.reshape(len(x), -1), compute_uv=False), [1.0, 0.1])))
        assert spread(layer) < 2 < 5 < spread(raw)
    norm = np.abs(flat["language_model/norm/scale"])  # Adam's first step is as long for every number
    np.testing.assert_allclose(norm, norm[0], rtol=1e-3)


def test_groups_have_their_own_learning_rate_and_decay(mesh):
    groups = (
        GroupConfig(("hyper",), 0.5, 0.25),
        GroupConfig(("vision", ".*/norm/scale"), 0.0),
        GroupConfig(("language",), 1.0, 0.0),
    )
    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5, groups=groups)
    optimizer = make_optimizer(settings, 10)
    fill = lambda value: jax.tree.map(lambda x: np.full(x.shape, value, np.float32), abstract_state(CONFIG, mesh).params)
    params, zeros = fill(1), fill(0)
    updates, _ = jax.jit(lambda: optimizer.update(zeros, optimizer.init(params), params))()
    flat = {"/".join(k.key for k in path): float(u.min()) for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    assert flat["language_model/hyper_layers/v_kv_proj/kernel"] == -0.125
    assert flat["language_model/layers/mlp/up_proj/kernel"] == 0.0
    assert flat["vision_model/layers/mlp/fc1/kernel"] == 0.0
    assert flat["vision2text_model/linear/kernel"] == -0.5
    with pytest.raises(ConfigError, match=r"groups\[0\]: \('nothing',\) matches no trained parameter"):
        make_optimizer(dataclasses.replace(settings, groups=(GroupConfig(("nothing",)),)), 10).init(params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lion", "eps": 1e-3}, "optimizer.eps is not read by lion"),
        ({"name": "adafactor", "b1": 0.5}, "optimizer.b1 is not read by adafactor"),
        ({"decay_share": 0.5}, "decay_share is read by the schedule wsd alone"),
        ({"schedule": "wsd", "decay_share": 0.0}, "decay_share must be in"),
    ],
)
def test_fields_that_an_optimizer_does_not_read_are_refused(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        OptimizerConfig(**fields)
