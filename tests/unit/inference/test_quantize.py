"""int8 weights are the numbers they stand for, with int8 caches answers hardly change, and both spread over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.config import Config, ConfigError, MeshConfig
from owl3_jax.inference import caches
from owl3_jax.inference.context import Context
from owl3_jax.inference.engine import Engine, new_images
from owl3_jax.inference.quantize import quantize_weights
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import Owl3, abstract_params
from owl3_jax.models.qwen2 import unstack_layers
from owl3_jax.sharding import make_mesh, param_shardings
from tests.tiny import COMPUTE, FORMS, init, model_config, single
from tests.tolerances import ENGINE_LOGITS, INT8_CACHES, INT8_FLIPS, INT8_ROUNDING, INT8_WEIGHTS
from tests.unit.inference.tiny_engine import TOKENIZER, continued, engine_config, prompt

WEIGHTS = dataclasses.replace(COMPUTE, weight_dtype="int8")
CACHES = dataclasses.replace(COMPUTE, cache_dtype="int8")
BOTH = dataclasses.replace(WEIGHTS, cache_dtype="int8")
GREEDY = Sampling(max_new_tokens=9, logprobs=True)
PROMPTS = [prompt(33, [2, 5, 6, 20]), prompt(16, [15], seed=2), prompt(5)]

# End of a path -> the dims that a product sums over, from the end; scales lack them.
SUMMED = {
    "embed_tokens": (-1,),
    "lm_head": (-1,),
    "patch_embedding/kernel": (-4, -3, -2),
    "v_kv_proj/kernel": (-4,),
    "self_attn/o_proj/kernel": (-3, -2),
    "self_attn/out_proj/kernel": (-3, -2),
    "self_attn/q_proj/kernel": (-3,),
    "self_attn/k_proj/kernel": (-3,),
    "self_attn/v_proj/kernel": (-3,),
    "gate_proj/kernel": (-2,),
    "up_proj/kernel": (-2,),
    "down_proj/kernel": (-2,),
    "fc1/kernel": (-2,),
    "fc2/kernel": (-2,),
    "linear/kernel": (-2,),
    "0/kernel": (-2,),
    "2/kernel": (-2,),
}


def config_of(form):
    return model_config(form, tie_word_embeddings=form == "static")


def summed_dims(path):
    return next((dims for end, dims in SUMMED.items() if path.endswith(end)), None)


def as_floats(params):
    """The float parameters that int8 ones stand for."""
    flat = flatten_dict(params, sep="/")
    scales = {path.removesuffix("_scale"): flat.pop(path) for path in list(flat) if path.endswith("_scale")}
    return unflatten_dict(
        {path: x * jnp.expand_dims(scales[path], summed_dims(path)) if path in scales else x for path, x in flat.items()},
        sep="/",
    )


@pytest.mark.parametrize("form", FORMS)
def test_all_matrices_and_nothing_else_become_int8(form):
    floats = flatten_dict(init(config_of(form)), sep="/")
    params = flatten_dict(quantize_weights(init(config_of(form)), config_of(form)), sep="/")
    matrices = {path for path in floats if summed_dims(path) and "hyper_layers/gate_proj" not in path}
    assert {path for path, x in params.items() if x.dtype == jnp.int8} == matrices
    assert params.keys() == floats.keys() | {f"{path}_scale" for path in matrices}
    for path, x in floats.items():
        if path not in matrices:
            assert params[path] is x
            continue
        scale = np.expand_dims(params[f"{path}_scale"], summed_dims(path))
        assert np.all(np.abs(params[path] * scale - x) <= scale * 0.50001)
        assert np.all(np.abs(np.asarray(params[path])).max(axis=summed_dims(path)) == 127)


@pytest.mark.parametrize(("form", "scan_layers"), [("gated", True), ("static", False), ("joint", True)])
def test_the_model_computes_with_the_numbers_that_int8_stands_for(form, scan_layers):
    config, batch = config_of(form), single(13, [2, 5], seed=1)
    stacked = quantize_weights(init(config), config)
    place = (lambda params: params) if scan_layers else unstack_layers
    compute = dataclasses.replace(WEIGHTS, scan_layers=scan_layers)
    logits = Owl3(config, compute).apply({"params": place(stacked)}, batch).logits
    expected = Owl3(config, COMPUTE).apply({"params": as_floats(stacked)}, batch).logits
    np.testing.assert_allclose(logits, expected, atol=INT8_ROUNDING)


def runtime(form, compute, mesh=None):
    config = engine_config(form)
    params = init(config)
    if mesh:
        params = jax.device_put(params, param_shardings(abstract_params(config, COMPUTE), mesh))
    params = quantize_weights(params, config) if compute.weight_dtype else params
    return Runtime(config, compute, params, mesh, vision_batch_size=2)


def next_logits(runtime, sample):
    """Logits after a prompt, through the caches."""
    context = Context.empty(runtime, 1, images=len(sample.image_starts), tokens=64)
    context.add_images([new_images(0, sample)])
    context.add_text([sample.input_ids.tolist()])
    model = Owl3(runtime.config, runtime.compute)
    return np.asarray(model.apply({"params": runtime.params}, context.last[:, None], method="logits")[0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_logits_stay_close(form):
    exact, weights, cached = (next_logits(runtime(form, compute), PROMPTS[0]) for compute in (COMPUTE, WEIGHTS, CACHES))
    assert 0 < np.abs(weights - exact).max() < INT8_WEIGHTS
    assert 0 < np.abs(cached - exact).max() < INT8_CACHES


def test_a_batch_with_int8_caches_equals_single_runs():
    engine = Engine(runtime("joint", BOTH), TOKENIZER)
    twice = dataclasses.replace(GREEDY, temperature=0.7, n=2)
    together = engine.generate(PROMPTS, twice)
    for row, answers in zip(PROMPTS, together, strict=True):
        for answer, alone in zip(answers, *engine.generate([row], twice), strict=True):
            assert answer.ids == alone.ids
            np.testing.assert_allclose(answer.logprobs, alone.logprobs, rtol=0, atol=INT8_FLIPS)


def test_beams_follow_their_int8_caches():
    """What a beam says of its tokens is what reading them as a prompt says."""
    ours, question = runtime("gated", BOTH), prompt(16, [2, 15], seed=5)
    sampling = Sampling(num_beams=3, n=3, max_new_tokens=6, repetition_penalty=1.5, logprobs=True)
    (beams,) = Engine(ours, TOKENIZER).generate([question], sampling)
    assert len({beam.ids[:2] for beam in beams}) == 2, "they part early"
    for beam in beams:
        read = [next_logits(ours, continued(question, beam.ids[:length])) for length in range(6)]
        expected = [jax.nn.log_softmax(logits)[token] for logits, token in zip(read, beam.ids, strict=True)]
        np.testing.assert_allclose(beam.logprobs, expected, rtol=0, atol=INT8_FLIPS)


def test_caches_grow_without_losing_anything():
    ours, sample = runtime("static", CACHES), PROMPTS[0]
    context = Context.empty(ours, 1, images=1, tokens=16)
    context.reserve(images=4, tokens=100)
    context.add_images([new_images(0, sample)])
    before = jax.tree.map(np.asarray, context.images.blocks)
    context.reserve(images=7, tokens=300)
    kept = jax.tree.map(lambda x: np.asarray(x)[:, :, :, :4], context.images.blocks)
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    assert context.images.blocks[0].keys.scale.shape[3] == 12 and context.text.keys.values.dtype == jnp.int8


@pytest.mark.parametrize(("compute", "tolerance"), [(WEIGHTS, ENGINE_LOGITS), (BOTH, INT8_FLIPS)])
def test_on_a_mesh_int8_is_the_same(compute, tolerance):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, context=2))
    spread, one = runtime("gated", compute, mesh), runtime("gated", compute)
    jax.tree.map(np.testing.assert_array_equal, spread.params, one.params)
    answers = [Engine(ours, TOKENIZER).generate(PROMPTS, GREEDY) for ours in (spread, one)]
    for (there,), (here,) in zip(*answers, strict=True):
        assert there.ids == here.ids
        np.testing.assert_allclose(there.logprobs, here.logprobs, rtol=0, atol=tolerance)


def test_scales_lie_where_their_output_channels_lie():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = model_config("joint", num_attention_heads=6, num_key_value_heads=2, hidden_size=84, intermediate_size=38)
    params = jax.device_put(init(config), param_shardings(abstract_params(config, COMPUTE), mesh))
    flat = flatten_dict(quantize_weights(params, config), sep="/")
    wanted = flatten_dict(param_shardings(abstract_params(config, WEIGHTS), mesh), sep="/")
    assert flat.keys() == wanted.keys()
    for path, x in flat.items():
        assert x.sharding.is_equivalent_to(wanted[path], x.ndim), f"{path}: {x.sharding} instead of {wanted[path]}"


@pytest.mark.parametrize(("compute", "bytes_a_vector"), [(COMPUTE, 4 * 14), (CACHES, 14 + 4)])
def test_cache_bytes_are_those_of_the_arrays(compute, bytes_a_vector):
    config = model_config()
    nbytes = lambda *caches: sum(x.nbytes for cache in caches for x in jax.tree.leaves((cache.keys, cache.values)))
    images = nbytes(*caches.empty_images(config, compute, 3, (2, 2, 1)).blocks)
    text = nbytes(caches.empty_text(config, compute, 3, 64))
    assert images == caches.image_bytes(config, compute, 3, 5) == 2 * 2 * 3 * 5 * 9 * bytes_a_vector
    assert text == caches.text_bytes(config, compute, 3, 64) == 2 * 5 * 3 * 64 * bytes_a_vector


@pytest.mark.parametrize("compute", [WEIGHTS, CACHES])
def test_a_run_is_never_int8(compute):
    with pytest.raises(ConfigError, match="int8 is for from_pretrained"):
        Config(compute=compute)
