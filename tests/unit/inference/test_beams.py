"""Beam search against transformers' own, prompt by prompt, on a tiny Qwen2 loaded through our converter."""

import copy
import functools

import jax
import numpy as np
import pytest
import torch

from owl3_jax.inference.engine import Engine, forward
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from tests.parity.ladder import pair
from tests.tiny import COMPUTE
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import POSITIONS, TOKENIZER, VOCAB_SIZE, engine, prompt, runtime

PROMPTS = [prompt(tokens, seed=tokens) for tokens in (7, 13, 5, 9, 21)]
FREQUENT = [10, 2]  # tokens that this model's answers often have
SETTINGS = [
    Sampling(num_beams=3, n=3, max_new_tokens=12),
    Sampling(num_beams=3, n=2, max_new_tokens=12, repetition_penalty=1.2),
    Sampling(num_beams=2, n=2, max_new_tokens=20, length_penalty=-1.0),
    Sampling(num_beams=5, n=5, max_new_tokens=20, min_new_tokens=3, length_penalty=2.0),
]


@functools.cache
def models(*, ends_early: bool):
    """Our engine and transformers' model. With `ends_early` the stop ids change places with frequent tokens."""
    config, reference, params = pair(vocab_size=VOCAB_SIZE, max_position_embeddings=POSITIONS)
    decoder, order, stops = copy.deepcopy(reference.language_model), np.arange(VOCAB_SIZE), list(TOKENIZER.stop_ids)
    if ends_early:
        order[FREQUENT + stops] = stops + FREQUENT
    decoder.lm_head.weight = torch.nn.Parameter(decoder.lm_head.weight[order])
    head = params["language_model"]["lm_head"][order]
    ours = params | {"language_model": params["language_model"] | {"lm_head": head}}
    return Engine(Runtime(config, COMPUTE, ours), TOKENIZER), decoder


def by_transformers(decoder, ids, sampling) -> list[tuple[int, ...]]:
    beams = decoder.generate(
        torch.tensor(ids)[None].long(),
        do_sample=False,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.n,
        early_stopping=False,
        length_penalty=sampling.length_penalty,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
        eos_token_id=list(TOKENIZER.stop_ids),
        pad_token_id=0,
    )
    return [until_stop(beam) for beam in beams[:, len(ids) :].tolist()]


def until_stop(ids):
    """Without what stands behind the stop id."""
    ends = [index + 1 for index, token in enumerate(ids) if token in TOKENIZER.stop_ids]
    return tuple(ids[: ends[0] if ends else None])


@pytest.mark.parametrize("ends_early", [False, True])
@pytest.mark.parametrize("sampling", SETTINGS, ids=["plain", "repetition", "short", "long"])
def test_beams_are_those_of_transformers(ends_early, sampling):
    ours, decoder = models(ends_early=ends_early)
    answers = ours.generate(PROMPTS, sampling)
    expected = [by_transformers(decoder, prompt.input_ids, sampling) for prompt in PROMPTS]
    assert [[answer.ids for answer in beams] for beams in answers] == expected
    reasons = {answer.finish_reason for beams in answers for answer in beams}
    assert reasons == ({"stop", "length"} if ends_early else {"length"})


def test_each_prompt_is_searched_as_if_it_were_alone():
    samplings = [
        Sampling(num_beams=3, n=3, max_new_tokens=5, min_new_tokens=5, length_penalty=0.0, repetition_penalty=1.3),
        Sampling(num_beams=3, n=3, max_new_tokens=12, min_new_tokens=2, length_penalty=3.0),
    ]
    prompts = [prompt(11, [2, 2, 7]), prompt(16, [0, 3, 9], seed=1)]
    together = engine("joint").generate(prompts, samplings)
    alone = [engine("joint").generate([one], sampling)[0] for one, sampling in zip(prompts, samplings, strict=True)]
    assert [[beam.ids for beam in beams] for beams in together] == [[beam.ids for beam in beams] for beams in alone]
    assert [len(beams[0].ids) for beams in together] == [5, 12]


def test_logprobs_are_the_models_own():
    sampling = Sampling(num_beams=3, n=3, max_new_tokens=9, repetition_penalty=1.5, logprobs=True)
    question = prompt(11, [2, 7])
    for answer in engine().generate([question], sampling)[0]:
        whole = question._replace(input_ids=np.concatenate([question.input_ids, np.array(answer.ids, np.int32)]))
        expected = jax.nn.log_softmax(forward(runtime(), whole)[10:-1])[np.arange(9), list(answer.ids)]
        np.testing.assert_allclose(answer.logprobs, expected, rtol=0, atol=ENGINE_LOGITS)


def test_a_stop_string_cuts_the_text_of_a_beam_and_changes_no_beam():
    ours, _ = models(ends_early=False)
    (free,) = ours.generate(PROMPTS[:1], SETTINGS[0])
    word = free[0].text.split()[4]
    (cut,) = ours.generate(PROMPTS[:1], SETTINGS[0].with_options(stop=[word]))
    assert [answer.ids for answer in cut] == [answer.ids[: len(found.ids)] for answer, found in zip(free, cut, strict=True)]
    assert all(word in TOKENIZER.decode(answer.ids) and word not in TOKENIZER.decode(answer.ids[:-1]) for answer in cut[:1])
    assert [answer.text for answer in cut] == [answer.text.partition(word)[0] for answer in free]
    assert cut[0].finish_reason == "stop" and free[0].finish_reason == "length"


def test_a_stream_of_beams_is_the_best_answer_at_once():
    ours, _ = models(ends_early=False)
    best = ours.generate(PROMPTS[:1], SETTINGS[0])[0][0]
    assert list(ours.stream(PROMPTS[0], SETTINGS[0].with_options(n=1))) == [best.text]
