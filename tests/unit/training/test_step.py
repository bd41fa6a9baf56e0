import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from owl3_jax.training.loss import next_token_loss
from owl3_jax.training.optimizer import learning_rate_schedule, make_optimizer
from owl3_jax.training.step import init_state, make_train_step, nonfinite_tensors, shift_images
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


def test_loss_is_the_weighted_mean_over_targets_of_the_same_segment():
    logits = np.random.default_rng(0).normal(size=(1, 29, 31)).astype(np.float32)
    loss, metrics = next_token_loss(jnp.asarray(logits), BATCH)
    log_probs = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
    # Token 0 of each segment (0 and 13) has nothing before it; 24 and later are padding.
    targets = [t for t in range(1, 24) if t != 13 and BATCH.loss_weights[0, t] > 0]
    np.testing.assert_allclose(loss, -np.mean([log_probs[t - 1, BATCH.tokens[0, t]] for t in targets]), rtol=1e-6)
    assert metrics["target_tokens"] == len(targets)
    hits = np.mean([log_probs[t - 1].argmax() == BATCH.tokens[0, t] for t in targets])
    np.testing.assert_allclose(metrics["accuracy"], hits, rtol=1e-6)


def test_rows_without_targets_give_zero_loss():
    loss, _ = next_token_loss(jnp.ones((1, 29, 31)), BATCH._replace(loss_weights=jnp.zeros((1, 29))))
    assert float(loss) == 0


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
    assert not metrics["finite"]
    after = jax.device_get((state.params, state.opt_state))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    named = nonfinite_tensors(CONFIG, mesh)(state, BATCH)
    assert "params/vision2text_model/linear/bias" in named
    assert [path for path in named if path.startswith("params")] == ["params/vision2text_model/linear/bias"]


def test_the_schedule_warms_up_and_ends_at_its_minimum():
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1e-3, end_learning_rate=1e-5, warmup_steps=10), 100)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 55, 100)], [0, 5e-4, 1e-3, 5.05e-4, 1e-5], atol=1e-9)


def test_weight_decay_is_for_matrices_only(mesh):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.5))
    params = jax.tree.map(jnp.ones_like, init_state(config, mesh).params)
    optimizer = make_optimizer(config.optimizer, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
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


def test_images_are_shifted_by_at_most_the_given_pixels():
    pixels = jnp.zeros((2, 250, 7, 7, 3), jnp.uint8).at[:, :, 3, 3].set(200)
    shifted = np.asarray(jax.jit(shift_images, static_argnums=2)(jax.random.key(0), pixels, 2))
    assert shifted.dtype == np.uint8 and shifted.shape == pixels.shape
    where = np.argwhere(shifted[..., 0] == 200)[:, 2:] - 3
    assert len(where) == 500, "no image loses its dot"
    assert {tuple(x) for x in where} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
