"""Gradients of a batch in parts, and what goes into them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig, TrainConfig
from owl3_jax.training.gradients import make_loss_and_gradients, microbatch, shift_images
from owl3_jax.training.step import init_state
from tests.tiny import model_config, pack, pad, single, stack
from tests.tolerances import MICROBATCHES

CONFIG = Config(
    model=model_config(num_hidden_layers=3, hyper_layers=(2,)),
    compute=ComputeConfig(dtype="float32", images_per_chunk=2),
    data=DataConfig(rows=16, tokens_per_row=29, images_per_row=5),
    train=TrainConfig(shift_pixels=1, loss_chunk=10),
)


def batch():
    """Sixteen rows with very different numbers of targets."""
    packed = pack([single(13, [2, 5], seed=1), single(11, [0], seed=2)])
    kinds = [packed, single(23, [3, 4, 9, 11, 20], seed=3), single(3, [], seed=4), single(29, [1], seed=5)]
    return stack([pad(kinds[row % 3 if row < 8 else 3], 29, 5) for row in range(16)])


def compute(mesh_config: MeshConfig, microbatches: int):
    run = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=microbatches))
    mesh = sharding.make_mesh(mesh_config, jax.devices()[: 1 if mesh_config.data == 1 else 8])
    params = init_state(CONFIG, mesh).params
    with sharding.use_mesh(mesh):
        step = jax.jit(make_loss_and_gradients(run), in_shardings=(None, sharding.batch_sharding(mesh), None))
        return jax.device_get(step(params, batch(), jax.random.key(3)))


@functools.cache
def at_once():
    return compute(MeshConfig(data=1), 1)


@pytest.mark.parametrize(("mesh", "microbatches"), [(MeshConfig(data=1), 4), (MeshConfig(data=8), 2)])
def test_microbatches_equal_the_batch_at_once(mesh, microbatches):
    (expected, expected_grads), (metrics, grads) = at_once(), compute(mesh, microbatches)
    for name in ("loss", "accuracy", "target_tokens"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    for (path, got), wanted in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        scale = max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(got, wanted, atol=MICROBATCHES * scale, err_msg=jax.tree_util.keystr(path))


def test_each_device_cuts_microbatches_out_of_its_own_rows():
    mesh = sharding.make_mesh(MeshConfig(data=8))
    rows = jax.device_put(jnp.arange(32), sharding.batch_sharding(mesh))
    tokens = lambda rows: Batch(rows, None, None, None, None, None)
    cut = jax.jit(lambda rows, number: microbatch(tokens(rows), 4, number).tokens, out_shardings=sharding.batch_sharding(mesh))
    parts = [np.asarray(cut(rows, number)) for number in range(4)]
    np.testing.assert_array_equal(parts, np.arange(32).reshape(8, 4).T)
    text = cut.lower(rows, 0).compile().as_text()
    assert "dynamic-slice" in text
    assert not any(moved in text for moved in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_images_are_shifted_by_at_most_the_given_pixels():
    pixels = jnp.zeros((2, 250, 7, 7, 3), jnp.uint8).at[:, :, 3, 3].set(200)
    shifted = np.asarray(jax.jit(shift_images, static_argnums=2)(jax.random.key(0), pixels, 2))
    assert shifted.dtype == np.uint8 and shifted.shape == pixels.shape
    where = np.argwhere(shifted[..., 0] == 200)[:, 2:] - 3
    assert len(where) == 500, "no image loses its dot"
    assert {tuple(x) for x in where} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
