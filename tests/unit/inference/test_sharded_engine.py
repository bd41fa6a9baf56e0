"""The same greedy tokens on eight devices as on one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from owl3_jax.config import MeshConfig, ModelConfig
from owl3_jax.inference.context import Context
from owl3_jax.inference.engine import Engine, forward
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.inference.session import Session
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.sharding import make_mesh, param_shardings
from tests.tiny import COMPUTE
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import TOKENIZER, engine_config, images, processor, prompt, random_params

GREEDY = Sampling(max_new_tokens=7, logprobs=True)
PROMPTS = [prompt(13, [0, 2, 2, 9, 12], seed=1), prompt(16, seed=2), prompt(5, [3], seed=3)]  # no count that 8 divides
CASES = [
    ("gated", MeshConfig(data=1, fsdp=8)),
    ("static", MeshConfig(data=1, tensor=2, context=4)),
    ("joint", MeshConfig(data=8)),
    ("joint", MeshConfig(data=1, fsdp=2, context=4)),
]
OVER_CONTEXT = MeshConfig(data=1, context=8)


def config(form) -> ModelConfig:
    """Heads and widths that eight devices divide, and few layers."""
    model = engine_config(form)
    vision = dataclasses.replace(model.vision, hidden_size=16, num_attention_heads=8, intermediate_size=24)
    sizes = {"hidden_size": 32, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 40}
    return dataclasses.replace(model, vision=vision, num_hidden_layers=2, hyper_layers=(2,), **sizes)


def on_mesh(form, mesh_config: MeshConfig) -> Runtime:
    mesh, params = make_mesh(mesh_config), random_params(config(form))
    shardings = param_shardings(abstract_params(config(form), COMPUTE), mesh)
    return Runtime(config(form), COMPUTE, jax.device_put(params, shardings), mesh, vision_batch_size=8)


@functools.cache
def on_one_device(form) -> Runtime:
    return Runtime(config(form), COMPUTE, random_params(config(form)))


@pytest.mark.parametrize(("form", "mesh"), CASES)
def test_answers_on_a_mesh_equal_those_on_one_device(form, mesh):
    assert jax.device_count() == 8
    answers = Engine(on_mesh(form, mesh), TOKENIZER).generate(PROMPTS, GREEDY)
    expected = Engine(on_one_device(form), TOKENIZER).generate(PROMPTS, GREEDY)
    for (own,), (one,) in zip(answers, expected, strict=True):
        assert own.ids == one.ids
        np.testing.assert_allclose(own.logprobs, one.logprobs, rtol=0, atol=ENGINE_LOGITS)


@pytest.mark.parametrize("form", ["gated", "joint"])
def test_logits_at_all_positions_with_images_and_text_over_devices(form):
    """Sixteen positions and five images over eight devices."""
    sixteen = prompt(16, [0, 2, 2, 9, 12], seed=1)
    spread, one = (forward(runtime, sixteen) for runtime in (on_mesh(form, OVER_CONTEXT), on_one_device(form)))
    assert spread.shape == one.shape == (16, one.shape[1])
    np.testing.assert_allclose(spread, one, rtol=0, atol=ENGINE_LOGITS)


def test_text_alone_on_a_mesh_that_spreads_images():
    spread = Engine(on_mesh("gated", OVER_CONTEXT), TOKENIZER)
    expected = Engine(on_one_device("gated"), TOKENIZER).generate(PROMPTS[1:2], GREEDY)
    assert spread.generate(PROMPTS[1:2], GREEDY)[0][0].ids == expected[0][0].ids


def test_beams_and_turns_on_a_mesh():
    sampling = Sampling(max_new_tokens=5, num_beams=3)
    answers = []
    for runtime in (on_mesh("gated", MeshConfig(data=2, fsdp=2, context=2)), on_one_device("gated")):
        session = Session(runtime, processor())
        turns = [
            session.ask("Which digit is red?", [*images(3)], sampling=Sampling(max_new_tokens=7)),
            session.ask("a", sampling=sampling),
        ]
        answers.append(turns)
    assert answers[0] == answers[1] and all(answers[0])


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0, "seed": 3}, {"num_beams": 3, "repetition_penalty": 1.2}, {"min_new_tokens": 5}]
)
def test_a_stream_on_a_mesh_that_pads_the_batch(options):
    sampling = Sampling(max_new_tokens=6, **options)
    texts = ["".join(Engine(runtime, TOKENIZER).stream(PROMPTS[0], sampling)) for runtime in runtimes_that_pad()]
    assert texts[0] == texts[1] != ""


def test_rows_of_padding_ask_for_no_token(monkeypatch):
    """A stream ends when its answer does, however long it might have been."""
    calls, decode = [], Context.decode
    monkeypatch.setattr(Context, "decode", lambda self, *args: calls.append(1) or decode(self, *args))
    short = Engine(on_one_device("gated"), TOKENIZER).generate(PROMPTS[:1], GREEDY)[0][0]
    stop = (short.text.split()[3],)
    calls.clear()
    list(Engine(next(runtimes_that_pad()), TOKENIZER).stream(PROMPTS[0], Sampling(max_new_tokens=90, stop=stop)))
    assert len(calls) < len(short.ids)


def runtimes_that_pad():
    yield on_mesh("gated", MeshConfig(data=2, fsdp=2, context=2))
    yield on_one_device("gated")
