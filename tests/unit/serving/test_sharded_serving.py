"""A server's answers on eight devices, which share the pools, are those on one."""

import jax
import numpy as np
import pytest

from owl3_jax.config import MeshConfig
from owl3_jax.inference import paged_programs
from owl3_jax.inference.engine import Engine as BatchEngine
from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.engine import Engine
from owl3_jax.serving.settings import EngineSettings
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.test_sharded_engine import PROMPTS, on_mesh, on_one_device
from tests.unit.inference.tiny_engine import TOKENIZER, continued
from tests.unit.serving.serving_engine import LONGEST, ask, asked

GREEDY = Sampling(max_new_tokens=7, logprobs=True)
SETTINGS = EngineSettings(max_running=4, max_images=8, cache_gib=0.002, warm_up=False)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr("owl3_jax.inference.buckets.PREFILL_CHUNK", 16)


@pytest.mark.parametrize(
    ("form", "mesh", "pages_split", "heads_split"),
    [
        ("gated", MeshConfig(data=1, fsdp=2, tensor=4), 2, 4),
        ("joint", MeshConfig(data=1, fsdp=2, context=4), 8, 1),
    ],
)
def test_answers_on_a_mesh_equal_those_on_one_device(form, mesh, pages_split, heads_split):
    expected = [answer for (answer,) in BatchEngine(on_one_device(form), TOKENIZER).generate(PROMPTS, GREEDY)]
    engine = Engine(on_mesh(form, mesh), TOKENIZER, SETTINGS)
    try:
        found = asked(engine, PROMPTS, GREEDY)
        for own, one in zip(found, expected, strict=True):
            assert own.ids == one.ids
            np.testing.assert_allclose([token.logprob for token in own.tokens], one.logprobs, rtol=0, atol=ENGINE_LOGITS)
        follow_up = continued(PROMPTS[0], found[0].ids)
        assert ask(engine, follow_up, GREEDY).begun.cached_images == 5
        pools = engine._batch.pools
        for pool in (*pools.text, *pools.images):
            own = pool.addressable_shards[0].data.shape
            assert (pool.shape[1] // own[1], pool.shape[2] // own[2]) == (pages_split, heads_split)
        run, last = engine._batch.pools._runtime.run, pools.sizes.image_pages - 1
        (page, *_), before = pools.of_images._idle, [np.asarray(pool) for pool in pools.images]
        taken = jax.device_get(run(paged_programs.take_page, pools.images, np.int32(page)))
        pools.images = run(paged_programs.put_page, pools.images, taken, np.int32(last))
        for pool, old in zip(pools.images, before, strict=True):
            np.testing.assert_array_equal(pool, np.concatenate([old[:, :last], old[:, page : page + 1]], axis=1))
    finally:
        engine.close(LONGEST)
