import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention import attend as entry
from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import TEXT, Plan, one_layer
from owl3_jax.attention.parts import Part
from owl3_jax.attention.visibility import visibility
from owl3_jax.models.hyper import Fusion, ImageCache, hyper_attention, hyper_or_plain
from owl3_jax.nn.stacks import PerLayer
from tests.tiny import COMPUTE

B, T, I, L, H, K, D, M = 2, 5, 3, 7, 6, 3, 11, 2
ROW = 1  # the hyper layer that is asked for


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, k, v = draw(B, H, T, D), draw(B, K, T, D), draw(B, K, T, D)
    positions, ones = jnp.arange(T)[None].repeat(B, 0), jnp.ones((B, T), jnp.int32)
    causal = visibility(positions, ones, positions, ones)
    cache = ImageCache(draw(M, B, K, I, L, D), draw(M, B, K, I, L, D))
    starts = jnp.array([[0, 1, 3], [1, 2, 0]], jnp.int32)  # the last one of the second row is padding
    visible = visibility(positions, ones, starts, jnp.array([[1, 1, 1], [1, 1, 0]], jnp.int32), inclusive=False)
    return q, k, v, causal, cache, visible, draw


def parts(q, k, v, causal, cache, visible):
    plan = Plan(TEXT, "xla")
    text, lse = attend(q, [one_layer(k, v)], causal, plan)
    image_keys, image_values = (x[ROW].reshape(B, K, I * L, D) for x in cache)
    seen = visible.over_tokens(I * L)
    image, _ = attend(q, [one_layer(image_keys, image_values)], seen, plan)
    joint = softmax_attention(
        q,
        jnp.concatenate([image_keys, k], 2),
        jnp.concatenate([image_values, v], 2),
        jnp.concatenate([seen.dense(), causal.dense()], -1),
    )
    return text, lse, image, joint


def softmax_attention(q, k, v, seen):
    k, v = (jnp.repeat(x, H // K, axis=1) for x in (k, v))
    scores = jnp.where(seen[:, None], jnp.einsum("bhtd,bhcd->bhtc", q, k) / D**0.5, -jnp.inf)
    return jnp.einsum("bhtc,bhcd->bhtd", jax.nn.softmax(scores), v)


def fuse(q, text, lse, cache, visible, gate):
    return hyper_attention(jnp.int32(ROW), q, Part(text, lse), Fusion((cache,), visible, gate), COMPUTE)


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize(
    "limits, everybody_sees", [([[1, 1, 1, 2, 2], [1, 1, 1, 1, 2]], [True, False, False]), ([[2] * T] * B, [True, True, False])]
)
def test_blocks_of_images_equal_one(monkeypatch, at_once, limits, everybody_sees):
    """Whether nobody, somebody or everybody sees a group of blocks."""
    monkeypatch.setattr(entry, "_BLOCKS_AT_ONCE", at_once)
    q, k, v, causal, cache, visible, _ = inputs(3)
    visible = visible._replace(limits=jnp.array(limits))
    text, lse, _, _ = parts(q, k, v, causal, cache, visible)
    seen = visible.dense()
    assert seen.all((0, 1)).tolist() == everybody_sees and seen.any((0, 1)).tolist() == [True, True, False]
    whole = fuse(q, text, lse, cache, visible, ())
    for apart in (lambda x: x, lambda x: PerLayer(tuple(x[layer : layer + 1] for layer in range(M)))):
        blocks = tuple(ImageCache(*(apart(x[:, :, :, image : image + 1]) for x in cache)) for image in range(I))
        in_blocks = hyper_attention(ROW, q, Part(text, lse), Fusion(blocks, visible, ()), COMPUTE)
        np.testing.assert_allclose(in_blocks, whole, atol=2e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_gated_form_computes_its_gate_from_self_attention():
    q, k, v, causal, cache, visible, draw = inputs()
    text, lse, image, _ = parts(q, k, v, causal, cache, visible)
    kernel, bias = draw(M, D, D), draw(M, D)
    g = sigmoid(np.asarray(text) @ np.asarray(kernel[ROW]) + np.asarray(bias[ROW]))
    expected = np.where(visible.sees[:, None, :, None], (1 - g) * text + g * image, text)
    np.testing.assert_allclose(fuse(q, text, lse, cache, visible, (kernel, bias)), expected, atol=3e-6)


def test_static_form_has_a_learned_gate():
    q, k, v, causal, cache, visible, draw = inputs(1)
    text, lse, image, _ = parts(q, k, v, causal, cache, visible)
    gate = draw(M, H, D)
    g = sigmoid(gate[ROW])[:, None]
    expected = np.where(visible.sees[:, None, :, None], (1 - g) * text + g * image, text)
    np.testing.assert_allclose(fuse(q, text, lse, cache, visible, (gate,)), expected, atol=3e-6)


def test_joint_form_is_one_softmax_over_images_and_text():
    q, k, v, causal, cache, visible, _ = inputs(2)
    text, lse, _, joint = parts(q, k, v, causal, cache, visible)
    np.testing.assert_allclose(fuse(q, text, lse, cache, visible, ()), joint, atol=3e-6)


@pytest.mark.parametrize("form", ["gated", "static", "joint"])
def test_a_position_that_sees_no_image_keeps_its_self_attention(form):
    q, k, v, causal, cache, visible, draw = inputs(3)
    text, lse, _, _ = parts(q, k, v, causal, cache, visible)
    gate = {"gated": (draw(M, D, D), draw(M, D)), "static": (draw(M, H, D),), "joint": ()}[form]
    out = fuse(q, text, lse, cache, visible, gate)
    unseeing = ~np.asarray(visible.sees)
    by_position = lambda x: np.moveaxis(np.asarray(x), 1, 2)
    assert unseeing.any()
    np.testing.assert_array_equal(by_position(out)[unseeing], by_position(text)[unseeing])
    assert not np.array_equal(by_position(out)[~unseeing], by_position(text)[~unseeing])


@pytest.mark.parametrize("collected", [True, False])
@pytest.mark.parametrize("dims", [None, (D, D), (H, D)])
def test_gradients_of_hyper_or_plain_are_those_of_the_branch_that_is_taken(dims, collected):
    """Of three layers the first and the last are hyper layers: the image cache's gradient has both, collected or added up."""
    q, k, v, causal, cache, visible, draw = inputs(4)
    text, lse, _, _ = parts(q, k, v, causal, cache, visible)
    gate = () if dims is None else (draw(M, *dims),) if dims == (H, D) else (draw(M, *dims), draw(M, D))
    pull, layers = draw(B, H, T, D), (1, -1, 0)

    def by_layers(q, text, gate, cache):
        images, out = (cache,) if collected else (), text
        for layer in layers:
            out, images = hyper_or_plain(COMPUTE, None, jnp.int32(layer), q, out, Fusion((cache,), visible, gate), images)
            out = Part(out, text.lse)
        return jnp.sum(pull * out.out)

    def written_out(q, text, gate, cache):
        out = text
        for layer in layers:
            fused = hyper_attention(layer, q, out, Fusion((cache,), visible, gate), COMPUTE) if layer >= 0 else out.out
            out = Part(fused, text.lse)
        return jnp.sum(pull * out.out)

    arguments = q, Part(text, lse), gate, cache
    found, wanted = (jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(*arguments) for f in (by_layers, written_out))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert all(np.any(layer) for layer in found[3].keys)
