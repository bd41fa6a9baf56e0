"""Answers with image tokens padded in the cache, as on TPUs, against those without padding."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from owl3_jax import compiler_options, sharding
from owl3_jax.inference.caches import image_bytes
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.qwen2 import unstack_layers
from tests.tiny import COMPUTE
from tests.unit.inference.tiny_engine import TOKENIZER, engine_config, prompt, random_params


@pytest.mark.parametrize(
    "options", [{}, {"scan_layers": False}, {"cache_dtype": "int8"}, {"attention": "pallas", "images_per_chunk": 2}]
)
def test_answers_are_the_same(monkeypatch, options):
    config, compute = engine_config("gated"), dataclasses.replace(COMPUTE, **options)
    prompts = [prompt(31, range(9)), prompt(9), prompt(20, [0, 3, 3], seed=1)]
    params = random_params(config)
    params = params if compute.scan_layers else unstack_layers(params)

    def answers(kind, positions):
        # Positions tell the two apart for jax, which would take the programs of one for the other.
        device = SimpleNamespace(platform="tpu", device_kind=kind) if kind else jax.devices()[0]
        monkeypatch.setattr(sharding, "_device", lambda: device)
        monkeypatch.setattr(compiler_options, "tpu_kind", lambda: None)  # the programs run on a CPU
        model = dataclasses.replace(config, max_position_embeddings=config.max_position_embeddings + positions)
        runtime = Runtime(model, compute, params, vision_batch_size=2)
        found = Engine(runtime, TOKENIZER).generate(prompts, Sampling(max_new_tokens=8, logprobs=True))
        return image_bytes(model, compute, 1, 1), found

    (padded_bytes, padded), (plain_bytes, plain) = answers("TPU v5 lite", 1), answers(None, 2)
    assert padded_bytes * config.vision.tokens_per_image == plain_bytes * 128
    for (a,), (b,) in zip(padded, plain, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
