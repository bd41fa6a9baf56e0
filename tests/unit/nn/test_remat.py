"""Remat policies: the same loss and gradients, less memory the less is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.config import ComputeConfig
from owl3_jax.models.owl3 import Owl3
from tests.tiny import init, model_config, pad, single
from tests.tolerances import REMAT

CONFIG = model_config("joint")
BATCH = pad(single(13, [2, 5, 6], seed=1), 17, 5)
POLICIES = ("none", "dots", "minimal", "full", "offload")


def step_of(remat):
    model = Owl3(CONFIG, ComputeConfig(dtype="float32", remat=remat, images_per_chunk=2))
    loss = lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, BATCH, method="last_hidden_state")))
    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def compiled(remat):
    return step_of(remat).lower(init(CONFIG)).compile()


@pytest.mark.parametrize("remat", POLICIES[1:])
def test_loss_and_gradients_are_those_of_none(remat):
    (loss, grads), (expected, expected_grads) = compiled(remat)(init(CONFIG)), compiled("none")(init(CONFIG))
    np.testing.assert_allclose(loss, expected, rtol=REMAT)
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(got, wanted, atol=REMAT * max(1.0, float(jnp.abs(wanted).max())))


def test_less_kept_is_less_memory():
    none, dots, minimal, full, _ = (compiled(remat).memory_analysis().temp_size_in_bytes for remat in POLICIES)
    assert none > dots > minimal > full


def test_offload_keeps_block_inputs_in_the_host_s_memory():
    """In the program for a TPU. A CPU's own memory is the host's: there it is as `full`."""
    text = lambda remat: step_of(remat).trace(init(CONFIG)).lower(lowering_platforms=("tpu",)).as_text()
    assert "pinned_host" in text("offload")
    assert "pinned_host" not in text("full")
