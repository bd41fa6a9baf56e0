"""Products in int8: as near to those of floats as rounding allows, with gradients, in layers, with adapters, on meshes."""

import dataclasses
import functools
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, ConfigError, MeshConfig
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.models.qwen2 import MLP
from owl3_jax.nn.int8_products import multiply_int8
from owl3_jax.nn.linear import Linear
from tests.tiny import COMPUTE, init, model_config, single, stack

INT8 = dataclasses.replace(COMPUTE, quantization="int8")
EQUATIONS = [
    ("bte,ef->btf", (2, 7, 11), (11, 5)),
    ("bte,ehd->bhtd", (2, 7, 11), (11, 3, 5)),
    ("bhtd,hde->bte", (2, 3, 7, 5), (3, 5, 11)),
    ("mbe,mef->mbf", (3, 2, 11), (3, 11, 5)),
]
STEPS = 127  # from zero to the largest value


def operands(equation, x_shape, kernel_shape):
    """Input, kernel, and gradient of the output; their vectors and channels differ in size."""
    normal = lambda number, *shape: jax.random.normal(jax.random.fold_in(jax.random.key(0), number), shape)
    x = normal(0, *x_shape) * jnp.exp(normal(1, x_shape[1], *[1] * (len(x_shape) - 2)))
    kernel = normal(2, *kernel_shape) * jnp.exp(normal(3, kernel_shape[-1]))
    return x, kernel, normal(4, *jnp.einsum(equation, x, kernel).shape)


def half_step(x, letters, kept):
    """The most that rounding changes each number: half of what the largest of its vector is divided into."""
    summed = [axis for axis, letter in enumerate(letters) if letter not in kept]
    return jnp.broadcast_to(jnp.abs(x).max(axis=summed, keepdims=True) / STEPS / 2, x.shape)


def largest_error(equation, x, kernel):
    """Of a product of rounded operands: what rounding changes in one of them, times the other one, and in both."""
    inputs, letters, output = equation.replace("->", ",").split(",")
    off_x, off_kernel = half_step(x, inputs, output), half_step(kernel, letters, output)
    product = functools.partial(jnp.einsum, equation)
    return product(off_x, jnp.abs(kernel)) + product(jnp.abs(x), off_kernel) + product(off_x, off_kernel)


@pytest.mark.parametrize(("equation", "x_shape", "kernel_shape"), EQUATIONS)
def test_a_product_is_off_by_no_more_than_rounding(equation, x_shape, kernel_shape):
    x, kernel, _ = operands(equation, x_shape, kernel_shape)
    exact = jnp.einsum(equation, x, kernel)
    error = jnp.abs(multiply_int8(equation, x, kernel) - exact)
    assert (error <= largest_error(equation, x, kernel) + 1e-6 * jnp.abs(exact)).all()
    assert error.max() > 0, "nothing was rounded"


@pytest.mark.parametrize(("equation", "x_shape", "kernel_shape"), EQUATIONS)
def test_gradients_are_off_by_no_more_than_rounding(equation, x_shape, kernel_shape):
    """Of the input: by rounding the kernel, and what comes in times the kernel's scales. Of the kernel: not at all."""
    x, kernel, dy = operands(equation, x_shape, kernel_shape)
    inputs, letters, output = equation.replace("->", ",").split(",")
    _, pull_back = jax.vjp(functools.partial(multiply_int8, equation), x, kernel)
    _, pull_back_exactly = jax.vjp(functools.partial(jnp.einsum, equation), x, kernel)
    (dx, dk), (exact_dx, exact_dk) = pull_back(dy), pull_back_exactly(dy)
    np.testing.assert_allclose(dk, exact_dk, atol=1e-6 * float(jnp.abs(exact_dk).max()))

    scale = 2 * half_step(kernel, letters, output)  # of each channel, the same along what is summed
    back = functools.partial(jnp.einsum, f"{output},{letters}->{inputs}")
    one = jnp.ones_like(kernel)
    channels = jnp.einsum(f"{letters}->{output.translate({ord(c): None for c in set(output) - set(letters)})}", scale)
    per_channel = channels / np.prod([n for n, letter in zip(kernel.shape, letters, strict=True) if letter not in output])
    missing = [axis for axis, letter in enumerate(output) if letter not in letters]
    scaled = dy * jnp.expand_dims(per_channel, missing)
    allowed = back(half_step(scaled, output, inputs), STEPS * one) + back(jnp.abs(dy), scale / 2)
    error = jnp.abs(dx - exact_dx)
    assert (error <= allowed + 1e-6 * jnp.abs(exact_dx).max()).all()
    assert error.max() > 0, "nothing was rounded"
    assert jnp.vdot(dx, exact_dx) > 0.999 * jnp.linalg.norm(dx) * jnp.linalg.norm(exact_dx)


def test_vectors_of_zeros_and_of_bfloat16_are_multiplied():
    x = jnp.zeros((1, 3, 11), jnp.bfloat16).at[0, 1].set(2.0)
    y, pull_back = jax.vjp(functools.partial(multiply_int8, "bte,ef->btf"), x, jnp.ones((11, 5), jnp.bfloat16))
    np.testing.assert_allclose(y[0, 1].astype(float), 22.0, rtol=1 / STEPS + 2**-9)
    assert not y[0, ::2].any()
    dx, dk = pull_back(jnp.zeros_like(y))
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16,) * 3
    assert not dx.any() and not dk.any()


CONFIG = model_config()
BATCH = stack([single(13, [2, 5], seed=seed) for seed in range(4)])


def gradients_of(compute):
    """A function (params) -> loss and gradients of a whole model."""
    model = Owl3(CONFIG, compute)
    return jax.value_and_grad(lambda params: jnp.sin(apply(model, params, "last_hidden_state", BATCH)).mean())


@functools.cache
def computed(quantization, remat):
    compute = dataclasses.replace(COMPUTE, quantization=quantization, remat=remat)
    return jax.jit(gradients_of(compute))(init(CONFIG))


def cosines(grads, others):
    """Of all tensors of gradients but those of a key's bias, which are zero."""
    flat, other = (jax.tree_util.tree_leaves_with_path(tree) for tree in (grads, others))
    for (path, a), (_, b) in zip(flat, other, strict=True):
        if jnp.linalg.norm(b) > 1e-6:
            yield jax.tree_util.keystr(path), float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_scanned_and_recomputed_layers_have_the_gradients_of_floats_but_for_rounding(remat):
    (loss, grads), (expected, exact) = computed("int8", remat), computed(None, "full")
    assert 0 < abs(float(loss - expected)) < 0.02
    found = dict(cosines(grads, exact))
    assert len(found) > 30
    assert min(found.values()) > 0.9, min(found, key=found.get)


@pytest.mark.parametrize(("remat", "again"), [("dots", 0), ("full", 6)])
def test_what_is_kept_of_a_product_is_not_computed_again(remat, again):
    """A layer has seven products: of each the output and the gradient of the input; under `full` all but the last again."""
    compute = dataclasses.replace(INT8, remat=remat)
    text = jax.jit(gradients_of(compute)).lower(init(CONFIG)).as_text()
    assert len(re.findall(r"dot_general.*xi8>.*-> tensor<[\dx]*xi32>", text)) == 14 + again
    assert not re.findall(r"tensor<5x[\dx]+xi32>", text), "results in integers are kept for all five layers"


WIDE = model_config(hidden_size=60, num_attention_heads=6, num_key_value_heads=2, intermediate_size=38)


def mlp_step(compute):
    """Parameters, input, and a function of them: loss and gradients of an MLP, whose parts a mesh splits."""
    layer, x = MLP(WIDE, compute), jax.random.normal(jax.random.key(1), (4, 13, 60))
    params = nn.unbox(layer.init(jax.random.key(0), x))
    return params, x, jax.value_and_grad(lambda params, x: jnp.sin(layer.apply(params, x)).sum(), argnums=(0, 1))


def test_without_it_nothing_is_quantized():
    texts = {}
    for compute in (INT8, COMPUTE):
        params, x, step = mlp_step(compute)
        texts[compute.quantization] = jax.jit(step).lower(params, x).as_text()
    assert "xi8>" in texts["int8"] and "xi8>" not in texts[None]


def test_an_adapter_is_added_in_floats():
    layer, floats = (Linear("bte,ef->btf", (11, 5), ("embed", "mlp"), compute, use_bias=False) for compute in (INT8, COMPUTE))
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, *shape: jax.random.normal(key, shape)
    x, kernel = normal(keys[0], 2, 7, 11), {"kernel": normal(keys[1], 11, 5)}
    adapter = {"lora_a": normal(keys[2], 11, 2), "lora_b": normal(keys[3], 2, 5), "lora_scale": jnp.array(0.5)}
    adapter["lora_dropout"] = None
    added = lambda layer: layer.apply({"params": kernel | adapter}, x) - layer.apply({"params": kernel}, x)
    np.testing.assert_allclose(added(layer), added(floats), atol=1e-5)
    slope = jax.grad(lambda b: layer.apply({"params": kernel | adapter | {"lora_b": b}}, x).sum())(adapter["lora_b"])
    assert jnp.abs(slope).min() > 0


def test_four_devices_compute_what_one_does():
    """But for numbers that a sum in another order rounds to their neighbours."""
    params, x, step = mlp_step(INT8)
    expected, exact = jax.jit(step)(params, x)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    boxed = jax.eval_shape(MLP(WIDE, INT8).init, jax.random.key(0), x)
    split = jax.device_put(params, sharding.param_shardings(boxed, mesh))
    with sharding.use_mesh(mesh):
        found, grads = jax.jit(step)(split, jax.device_put(x, sharding.batch_sharding(mesh)))
    assert len(grads[1].sharding.device_set) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert min(dict(cosines(grads, exact)).values()) > 0.9999


def test_what_cannot_go_together_is_refused():
    for other in ("weight_dtype", "cache_dtype"):
        with pytest.raises(ConfigError, match=rf"compute.quantization is for training, and compute.{other} for inference"):
            ComputeConfig(quantization="int8", **{other: "int8"})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ConfigError, match=r"needs qwix, which is not installed: pip install 'owl3_jax\[int8\]'"):
        multiply_int8("be,ef->bf", jnp.ones((2, 3)), jnp.ones((3, 5)))
