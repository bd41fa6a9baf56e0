"""The same loss and gradients however samples are laid out: packed or alone, on one device or on a mesh, with LoRA too."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, Config, DataConfig, LoraConfig, MeshConfig, TrainConfig
from owl3_jax.sharding import param_shardings
from owl3_jax.training.gradients import make_loss_and_gradients
from owl3_jax.training.lora import abstract_run_params
from tests.tiny import FORMS, model_config, pack, pad, single, stack
from tests.tolerances import LOSS_EQUALITY

T, I = 61, 9
SIZES = {"hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "hyper_layers": (2,)}


def config_of(form="gated", rows=1, **changes):
    return Config(
        model=model_config(form, **SIZES, vocab_size=32),
        compute=ComputeConfig(dtype="float32", images_per_chunk=2),
        data=DataConfig(rows=rows, tokens_per_row=T, images_per_row=I),
        train=TrainConfig(loss_chunk=17),
        **changes,
    )


def samples():
    """A text, one image, several images at any places, and a video's run of placeholders."""
    made = [single(7, [], seed=1), single(13, [4], seed=2), single(17, [0, 5, 11], seed=3), single(19, [2, 3, 4, 5], seed=4)]
    return [sample._replace(loss_weights=np.ones_like(sample.loss_weights)) for sample in made]


@functools.cache
def program(form):
    config = config_of(form)
    mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = some_params(config, mesh)
    compiled = jax.jit(make_loss_and_gradients(config))
    return lambda batch: jax.device_get(compiled(params, batch, jax.random.key(0)))


def some_params(config, mesh):
    """Numbers for all parameters, adapters among them, on the mesh; norms' scales are about 1."""
    boxes, shardings = abstract_run_params(config), param_shardings(abstract_run_params(config), mesh)
    rng = np.random.default_rng(0)

    def make(path, box, sharding):
        values = 0.2 * rng.standard_normal(box.value.shape) + (path[-1].key == "scale")
        return jax.device_put(values.astype(np.float32), sharding)

    is_box = lambda node: isinstance(node, nn.LogicallyPartitioned)
    return jax.tree_util.tree_map_with_path(make, boxes, shardings, is_leaf=is_box)


def require_equal(got, expected):
    (got_metrics, got_grads), (metrics, grads) = got, expected
    for name in ("loss", "accuracy", "target_tokens"):
        np.testing.assert_allclose(got_metrics[name], metrics[name], rtol=LOSS_EQUALITY, err_msg=name)
    for (path, value), wanted in zip(jax.tree_util.tree_leaves_with_path(got_grads), jax.tree.leaves(grads), strict=True):
        scale = max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(value, wanted, atol=LOSS_EQUALITY * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("form", FORMS)
def test_each_packed_sample_has_the_loss_and_gradients_that_it_has_alone(form):
    compute = program(form)
    packed = pad(pack(samples()), T, I)
    for number, sample in enumerate(samples(), start=1):
        only = packed._replace(loss_weights=np.where(packed.segment_ids == number, packed.loss_weights, 0.0))
        alone = pad(sample, T, I)
        assert int(jax.numpy.sum(alone.loss_weights)) == sample.tokens.shape[1]
        require_equal(compute(only), compute(alone))


def test_a_packed_row_has_the_mean_over_all_targets_of_its_samples():
    compute = program("gated")
    row, parts = compute(pad(pack(samples()), T, I)), [compute(pad(sample, T, I)) for sample in samples()]
    weights = np.array([metrics["target_tokens"] for metrics, _ in parts])
    assert list(weights) == [6, 12, 16, 18], "each sample's tokens but the first"
    mean = lambda *values: np.tensordot(weights / weights.sum(), np.stack(values), 1)
    totals = {"loss": mean(*[metrics["loss"] for metrics, _ in parts]), "target_tokens": weights.sum()}
    totals["accuracy"] = mean(*[metrics["accuracy"] for metrics, _ in parts])
    require_equal(row, (totals, jax.tree.map(mean, *[grads for _, grads in parts])))


MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def rows():
    kinds = [pad(pack(samples()), T, I), *(pad(sample, T, I) for sample in samples())]
    return stack([kinds[row % len(kinds)] for row in range(8)])


def on_mesh(config, mesh_config):
    config = dataclasses.replace(config, mesh=mesh_config)
    mesh = sharding.make_mesh(mesh_config, jax.devices()[: 1 if mesh_config == MeshConfig(data=1) else 8])
    params = some_params(config, mesh)
    with sharding.use_mesh(mesh):
        compute = jax.jit(make_loss_and_gradients(config), in_shardings=(None, sharding.batch_sharding(mesh), None))
        return jax.device_get(compute(params, rows(), jax.random.key(3)))


@pytest.mark.parametrize(
    "lora", [LoraConfig(), LoraConfig(rank=2, target=("language_model/.*", "vision"))], ids=["whole", "LoRA"]
)
def test_eight_devices_have_the_loss_and_gradients_of_one(lora):
    config = config_of(rows=8, lora=lora)
    require_equal(on_mesh(config, MESH), on_mesh(config, MeshConfig(data=1)))
