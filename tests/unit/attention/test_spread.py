"""Attention, its log-sum-exp and all gradients on eight devices as on one."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import IMAGES, TEXT, VISION, Plan, one_layer
from owl3_jax.attention.visibility import visibility
from owl3_jax.config import MeshConfig
from owl3_jax.sharding import make_mesh, use_mesh
from tests.tiny import COMPUTE
from tests.tolerances import ATTENTION_MESH

B, H, K, D, L, M = 4, 4, 2, 6, 3, 2
MESHES = {
    "data x fsdp x tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor beyond the key heads": MeshConfig(data=2, tensor=4),
    "tensor x context": MeshConfig(data=1, tensor=2, context=4),
    "context": MeshConfig(data=1, context=8),
}
SHAPES = {"divided": (16, 8), "not divided": (13, 5), "text only divided": (16, 5), "images only divided": (13, 8)}  # T, I


def inputs(T, I):
    """Two packed samples a row, the second with the last images; the last row sees no image."""
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (B, heads, T, D)) for key, heads in zip(keys, (H, K, K), strict=False))
    image_k, image_v = (jax.random.normal(key, (M, B, K, I, L, D)) for key in keys[3:])
    half, image_half = T // 2, I - 3
    positions = jnp.asarray([*range(half), *range(T - half)], jnp.int32)[None].repeat(B, 0)
    segments = jnp.asarray([1] * half + [2] * (T - half), jnp.int32)[None].repeat(B, 0).at[0, -2:].set(0)
    starts = jnp.asarray([0] * image_half + [0, 2, 3], jnp.int32)[None].repeat(B, 0)
    image_segments = jnp.asarray([1] * image_half + [2, 2, 2], jnp.int32)[None].repeat(B, 0).at[-1].set(0)
    over_text = visibility(positions, segments, positions, segments)
    over_images = visibility(positions, segments, starts, image_segments, inclusive=False)
    return (q, k, v, over_text), (q, image_k, image_v, over_images)


def attention(kind, backend):
    """Text over images, text over text, or every position over every other."""
    plan = Plan(IMAGES, backend, COMPUTE.images_per_chunk)
    return {
        "images": lambda q, k, v, visible: attend(q, [(k, v)], visible, plan, jnp.int32(1)),
        "text": lambda q, k, v, visible: attend(q, [one_layer(k, v)], visible, Plan(TEXT, backend)),
        "vision": lambda q, k, v, _: attend(q, [one_layer(k, v)], None, Plan(VISION, backend)),
    }[kind]


@functools.cache
def results(kind, shape, backend, mesh):
    """Output, log-sum-exp and the gradients of q, k and v through both; `mesh` None: on one device."""
    text, images = inputs(*SHAPES[shape])
    *vectors, visible = images if kind == "images" else text
    sees = visible.sees[:, None]

    def value(q, k, v):
        out, lse = attention(kind, backend)(q, k, v, visible)
        lse = jnp.where(sees, lse, 0)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(lse)), (out, lse)

    with use_mesh(make_mesh(MESHES[mesh])) if mesh else contextlib.nullcontext():
        (_, outputs), grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(*vectors)
    return [np.asarray(x) for x in (*outputs, *grads)]


def check(kind, shape, mesh, backend="xla"):
    here, spread = results(kind, shape, "xla", None), results(kind, shape, backend, mesh)
    for name, a, b in zip(("out", "lse", "d_q", "d_k", "d_v"), here, spread, strict=True):
        np.testing.assert_allclose(a, b, atol=ATTENTION_MESH, err_msg=name)
        assert np.abs(a).max() > 0.1, name


@pytest.mark.parametrize("kind", ["text", "images", "vision"])
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_computes_the_same(mesh, kind):
    check(kind, "divided", mesh)


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("shape", list(SHAPES)[1:])
def test_any_number_of_positions_and_images(shape, kind):
    check(kind, shape, "tensor x context")


@pytest.mark.parametrize("kind", ["text", "images"])
def test_kernels_on_a_mesh(kind):
    check(kind, "divided", "tensor x context", backend="pallas")


def test_no_device_gathers_the_images_of_others():
    _, (q, k, v, visible) = inputs(*SHAPES["divided"])
    with use_mesh(make_mesh(MESHES["context"])):
        spec = jax.sharding.PartitionSpec(None, None, None, "context")
        k, v = (jax.device_put(x, spec) for x in (k, v))
        loss = lambda *x: attention("images", COMPUTE.attention)(*x, visible).out.sum()
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
    all_images = f"{K},{SHAPES['divided'][1]},{L},{D}]"
    gathers = [line for line in compiled.as_text().splitlines() if " all-gather(" in line]
    assert gathers, "positions are gathered"
    assert not any(all_images in line for line in gathers)
