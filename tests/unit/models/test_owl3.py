"""The whole model: what the one batch form promises, cached decoding, and the released sizes."""

import dataclasses
import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from owl3_jax import sharding
from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig
from owl3_jax.models.owl3 import Owl3, abstract_params, text_of
from owl3_jax.models.qwen2 import Images, Text, TextCache
from owl3_jax.released import NAMED_SIZES
from tests.tiny import COMPUTE, FORMS, init, model_config, pack, pad, single, stack
from tests.tolerances import KERNEL_FLOAT32

ATOL = 1e-4  # logits of scale 20; measured 3.2e-5 in float32 where the sums run in another order


def logits(form, batch: Batch, **compute):
    config = model_config(form)
    model = Owl3(config, dataclasses.replace(COMPUTE, **compute))
    return np.asarray(jax.jit(model.apply)({"params": init(config)}, batch).logits)


SAMPLES = {"two images": single(13, [2, 5], seed=1), "text only": single(7, [], seed=2), "three": single(11, [0, 1, 7], seed=3)}


@pytest.mark.parametrize("form", FORMS)
def test_padded_ragged_rows_equal_each_sample_alone(form):
    rows = logits(form, stack([pad(sample, 17, 5) for sample in SAMPLES.values()]))
    for row, (name, sample) in zip(rows, SAMPLES.items(), strict=True):
        alone = logits(form, sample)[0]
        np.testing.assert_allclose(row[: len(alone)], alone, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_packed_samples_equal_each_sample_alone(form):
    packed = logits(form, pad(pack(list(SAMPLES.values())), 37, 7))[0]
    start = 0
    for name, sample in SAMPLES.items():
        alone = logits(form, sample)[0]
        np.testing.assert_allclose(packed[start : start + len(alone)], alone, atol=ATOL, err_msg=name)
        start += len(alone)


@pytest.mark.parametrize("form", FORMS)
def test_text_sees_an_image_from_its_placeholder_on_and_never_the_future(form):
    sample = single(13, [2, 5], seed=1)
    changed_pixels = sample.pixels.copy()
    changed_pixels[0, 1] = 255 - changed_pixels[0, 1]  # the image at 5
    changed_tokens = sample.tokens.copy()
    changed_tokens[0, 9] = (changed_tokens[0, 9] + 1) % 31
    before = logits(form, sample)[0]
    moved = np.abs(logits(form, sample._replace(pixels=changed_pixels))[0] - before).max(-1) > 1e-4
    first = 5 if form == "joint" else 6
    assert moved.tolist() == [t >= first for t in range(13)]
    moved = np.abs(logits(form, sample._replace(tokens=changed_tokens))[0] - before).max(-1) > 1e-4
    assert moved.tolist() == [t >= 9 for t in range(13)]


def read_images(model, params, batch):
    """What the decoder keeps of a batch's images."""
    features = model.apply(params, jnp.asarray(batch.pixels), method="encode_images")
    cache = model.apply(params, features, jnp.asarray(batch.image_positions), method="image_cache")
    return Images((cache,), jnp.asarray(batch.image_positions), jnp.asarray(batch.image_segment_ids))


@pytest.mark.parametrize("form", FORMS)
def test_prefill_and_decoding_equal_one_forward_pass(form):
    """A prompt of ragged rows, then two more pieces of text, through both caches."""
    config = model_config(form)
    model, params = Owl3(config, COMPUTE), {"params": init(config)}
    whole = [single(11, [2, 5], seed=1), single(11, [1], seed=2)]
    prompts = [6, 4]  # tokens of each row that come first
    cut = lambda b, end: b._replace(
        **{n: getattr(b, n)[:, :end] for n in ("tokens", "positions", "segment_ids", "loss_weights")}
    )
    batch = stack([pad(cut(sample, end), 8, 3) for sample, end in zip(whole, prompts, strict=True)])
    images, cache = read_images(model, params, batch), TextCache.empty(config, COMPUTE, 2, 13)
    extend = jax.jit(lambda *args: model.apply(*args, method="extend"))
    head = lambda x: np.asarray(model.apply(params, x, method="logits"))
    x, cache = extend(params, jax.tree.map(jnp.asarray, text_of(batch)), images, cache)
    got = [[head(x)[row, :end]] for row, end in enumerate(prompts)]
    for start, stop in ((0, 1), (1, 5)):
        pieces = [[a[:, end + start : end + stop] for a in text_of(s)] for s, end in zip(whole, prompts, strict=True)]
        x, cache = extend(params, Text(*(jnp.asarray(np.concatenate(a)) for a in zip(*pieces, strict=True))), images, cache)
        for row in (0, 1):
            got[row].append(head(x)[row])
    for row, (sample, end) in enumerate(zip(whole, prompts, strict=True)):
        expected = logits(form, sample)[0, : end + 5]
        np.testing.assert_allclose(np.concatenate(got[row]), expected, atol=ATOL)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_do_not_depend_on_remat_or_chunks(form):
    config, batch = model_config(form), pad(single(13, [2, 5, 6], seed=1), 17, 5)
    params = init(config)

    def grads(**compute):
        model = Owl3(config, dataclasses.replace(COMPUTE, **compute))
        weights = jax.random.normal(jax.random.key(5), (1, 17, 31)) * (batch.segment_ids != 0)[..., None]
        return jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, batch).logits * weights)))(params)

    plain = grads(images_per_chunk=7)
    for other in (grads(images_per_chunk=2), grads(remat="full")):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))


def test_dtypes_apart_logits_in_float32():
    config = model_config()
    batch = pad(single(13, [2, 5], seed=1), 17, 3)
    model = Owl3(config, ComputeConfig(dtype="bfloat16", param_dtype="float32", images_per_chunk=2))
    params = init(config)
    out = jax.jit(model.apply)({"params": params}, batch)
    assert (out.logits.dtype, out.image_features.dtype) == (jnp.float32, jnp.bfloat16)
    exact = logits("gated", batch)[:, :13]
    assert np.abs(np.asarray(out.logits)[:, :13] - exact).max() / np.abs(exact).max() < 0.05  # measured 0.015
    half = jax.eval_shape(Owl3(config, ComputeConfig(param_dtype="bfloat16")).init, jax.random.key(0), batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}


def count(shapes, prefix):
    return sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path.startswith(prefix))


# From the published sizes (E, F, N, K*D, V, Ev, ...), by hand: language model without hyper attention, `v_kv_proj`,
# gates, projector. SigLIP so400m without the unused last block, final norm and pooling head.
PUBLISHED = {
    "7b-240728": (7_615_616_512 - 2 * 3584 * (152064 - 151851), 14_684_160, 66_048, 4_132_352),
    "7b-241101": (7_615_616_512 - 2 * 3584 * (152064 - 151651), 14_684_160, 0, 16_980_992),
    "1b-241014": (494_032_768 - 896 * (151936 - 151851), 4 * (896 * 256 + 256), 4 * 896, 1152 * 896 + 896),
    "2b-241014": (1_543_714_304 - 1536 * (151936 - 151851), 4 * (1536 * 512 + 512), 4 * 1536, 1152 * 1536 + 1536),
}
SIGLIP_BLOCK = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_parameter_counts_of_the_released_checkpoints(size):
    shapes = flatten_dict(nn.unbox(abstract_params(NAMED_SIZES[size], COMPUTE)), sep="/")
    kv = count(shapes, "language_model/hyper_layers/v_kv_proj")
    hyper = count(shapes, "language_model/hyper_layers")
    language = count(shapes, "language_model") - hyper
    assert (language, kv, hyper - kv, count(shapes, "vision2text_model")) == PUBLISHED[size]
    embeddings = 588 * 1152 + 1152 + 729 * 1152
    assert count(shapes, "vision_model") == embeddings + 26 * SIGLIP_BLOCK


@pytest.mark.parametrize(
    "options", [{}, {"images_per_chunk": 2, "remat": "dots"}, {"attention": "pallas", "images_per_chunk": 3}]
)
def test_the_padding_of_images_on_tpus_changes_nothing(monkeypatch, options):
    """Logits, and gradients of all parameters, with image tokens padded to the kernels' blocks as without."""
    config, batch = model_config(), jax.tree.map(jnp.asarray, pad(pack(list(SAMPLES.values())), 37, 7))
    model, params = Owl3(config, dataclasses.replace(COMPUTE, **options)), init(config)
    pull = jax.random.normal(jax.random.key(0), (1, 37, config.vocab_size))

    def run_for(kind):
        device = SimpleNamespace(platform="tpu", device_kind=kind) if kind else jax.devices()[0]
        monkeypatch.setattr(sharding, "_device", lambda: device)

        def of_params(params):
            logits = model.apply({"params": params}, batch).logits
            return jnp.sum(pull * logits * (batch.segment_ids != 0)[..., None]), logits

        grad = jax.grad(of_params, has_aux=True)
        of_cache = f",7,128,{config.head_dim}]"
        assert (of_cache in str(jax.make_jaxpr(grad)(params))) == (kind is not None)
        gradients, logits = jax.jit(grad)(params)
        return jax.tree.leaves(gradients), logits

    (padded, padded_logits), (plain, plain_logits) = run_for("TPU v5 lite"), run_for(None)
    np.testing.assert_allclose(padded_logits, plain_logits, atol=ATOL)
    largest = max(np.abs(x).max() for x in plain)
    for a, b in zip(padded, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=KERNEL_FLOAT32 * largest)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_no_layer_keeps_the_image_cache(remat):
    """The cache goes from layer to layer for its gradient alone: in the compiled step nothing holds it for all N layers."""
    config, batch = model_config(), jax.tree.map(jnp.asarray, SAMPLES["two images"])
    model, params = Owl3(config, dataclasses.replace(COMPUTE, remat=remat)), init(config)
    loss = lambda params: jnp.sum(model.apply({"params": params}, batch).logits)
    cache = f"{len(config.hyper_layers)},1,{config.num_key_value_heads},2,9,{config.head_dim}]"
    compiled = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    assert f"f32[{cache}" in compiled and f"f32[{config.num_hidden_layers},{cache}" not in compiled


def test_text_alone_where_kernels_would_take_the_images():
    """No image, of as many tokens as the released models' have: there is nothing that a kernel could compute."""
    config = model_config("static")
    vision = dataclasses.replace(config.vision, image_size=12 * config.vision.patch_size)
    config = dataclasses.replace(config, vision=vision)
    side, ids = vision.image_size, jnp.ones((1, 9), jnp.int32)
    none = jnp.zeros((1, 0), jnp.int32)
    batch = Batch(ids, jnp.arange(9)[None], ids, jnp.zeros((1, 0, side, side, 3), jnp.uint8), none, none)
    params = nn.unbox(abstract_params(config, COMPUTE))
    assert vision.tokens_per_image >= 128
    for attention in ("auto", "pallas"):
        model = Owl3(config, dataclasses.replace(COMPUTE, attention=attention))
        found = jax.eval_shape(lambda params, model=model: model.apply({"params": params}, batch).logits, params)
        assert found.shape == (1, 9, config.vocab_size)
