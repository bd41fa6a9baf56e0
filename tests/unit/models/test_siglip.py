import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.models.siglip import Siglip, normalize_pixels
from tests.tiny import COMPUTE, model_config
from tests.tolerances import KERNEL_FLOAT32

VISION = model_config().vision


def run(pixels, config=VISION):
    model = Siglip(config, COMPUTE)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), pixels))
    return params, jax.jit(model.apply)(params, pixels)


def test_pixels_are_normalised_to_minus_one_and_one():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    out = np.asarray(normalize_pixels(jnp.asarray(pixels)))
    np.testing.assert_allclose(out[0, 0, 0], -1)
    np.testing.assert_allclose(out[0, 15, 15], 1)
    np.testing.assert_array_equal(np.asarray(normalize_pixels(jnp.asarray(out))), out)


def test_the_pixels_beyond_the_last_whole_patch_are_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 11, 11, 3), np.uint8)
    changed = pixels.copy()
    changed[:, 9:], changed[:, :, 9:] = 0, 0
    np.testing.assert_array_equal(run(pixels)[1], run(changed)[1])
    assert run(pixels)[1].shape == (2, 9, 10)


def test_patches_are_in_row_major_order():
    pixels = np.full((1, 11, 11, 3), 128, np.uint8)
    pixels[0, 3:6, 6:9] = 255  # patch row 1, column 2 of 3 x 3
    model = Siglip(dataclasses.replace(VISION, num_hidden_layers=2), COMPUTE)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), pixels))
    _, state = model.apply(
        params, jnp.asarray(pixels), capture_intermediates=lambda module, _: module.name == "patch_embedding"
    )
    embedded = np.asarray(state["intermediates"]["embeddings"]["patch_embedding"]["__call__"][0]).reshape(9, -1)
    others = np.delete(embedded, 5, axis=0)
    assert np.ptp(others, axis=0).max() < 1e-6
    assert np.abs(embedded[5] - others[0]).max() > 0.1


def test_the_last_block_of_the_checkpoint_has_no_parameters():
    params, _ = run(np.zeros((1, 11, 11, 3), np.uint8))
    assert params["params"]["layers"]["mlp"]["fc1"]["kernel"].shape == (2, 10, 13)
    assert set(params["params"]) == {"embeddings", "layers"}


@pytest.mark.parametrize("backend", ["xla", "pallas"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_on_tpus_tokens_are_padded_and_nothing_else_changes(monkeypatch, backend, remat):
    """The tokens of an image, and the gradients of all parameters, are those without padding."""
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 11, 11, 3), np.uint8))
    model = Siglip(VISION, dataclasses.replace(COMPUTE, attention=backend, remat=remat))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), pixels))
    pull = jax.random.normal(jax.random.key(1), (2, 9, 10))

    def run_on(tpu):
        device = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite") if tpu else jax.devices()[0]
        monkeypatch.setattr(sharding, "_device", lambda: device)
        of_params = lambda params: (jnp.sum(pull * (tokens := model.apply(params, pixels))), tokens)
        gradients, tokens = jax.jit(jax.grad(of_params, has_aux=True))(params)
        assert tokens.shape == (2, 9, 10)
        jaxpr = str(jax.make_jaxpr(lambda params: model.apply(params, pixels))(params))
        assert ("f32[2,128,10]" in jaxpr) == tpu
        return jax.tree.leaves((tokens, gradients))

    padded, plain = run_on(True), run_on(False)
    largest = max(np.abs(x).max() for x in plain)  # biases of keys have no gradient but rounding errors
    for a, b in zip(padded, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=KERNEL_FLOAT32 * largest)
