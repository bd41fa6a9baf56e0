"""How answers are chosen and where they end: rows of one batch with settings of their own."""

import jax
import numpy as np
import pytest

from owl3_jax.inference import programs
from owl3_jax.inference.memory import OutOfMemory
from owl3_jax.inference.sampling import Sampling
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import (
    POSITIONS,
    TOKENIZER,
    continued,
    engine,
    live_bytes,
    memory_running_out,
    prompt,
    uncached,
)

PROMPTS = [prompt(9, [0, 2, 5]), prompt(13, seed=1), prompt(16, [7, 7, 7, 15], seed=2), prompt(4, seed=3)]
DRAW = Sampling(max_new_tokens=9, temperature=1.3, top_k=20)


def ids_of(answers):
    return [[answer.ids for answer in of_prompt] for of_prompt in answers]


def test_a_row_draws_the_same_alone_and_in_a_batch():
    samplings = [DRAW.with_options(seed=seed, temperature=0.5 + seed) for seed in range(4)]
    together = ids_of(engine().generate(PROMPTS, samplings))
    alone = [ids_of(engine().generate([one], [own]))[0] for one, own in zip(PROMPTS, samplings, strict=True)]
    assert together == alone


def test_seeds_and_samples_differ_and_repeat():
    settings = [DRAW.with_options(seed=seed, n=3) for seed in (1, 2, 1)]
    first, other, again = ids_of(engine().generate([PROMPTS[0]] * 3, settings))
    assert first == again and first != other
    assert len({*first, *other}) == 6
    assert ids_of(engine().generate(PROMPTS[:1], DRAW.with_options(seed=1)))[0][0] == first[0], "the first of n is that of one"


def test_samples_of_prompts_with_images_share_their_caches():
    sampling = DRAW.with_options(n=2, logprobs=True)
    answers = engine().generate(PROMPTS, sampling)
    for sample in range(2):
        chosen = [of_prompt[sample] for of_prompt in answers]
        wholes = [continued(one, answer.ids) for one, answer in zip(PROMPTS, chosen, strict=True)]
        for one, answer, logits in zip(PROMPTS, chosen, uncached("gated", wholes), strict=True):
            own = jax.nn.log_softmax(logits[len(one.input_ids) - 1 : -1])[np.arange(len(answer.ids)), list(answer.ids)]
            np.testing.assert_allclose(answer.logprobs, own, rtol=0, atol=ENGINE_LOGITS)


def test_each_row_has_its_own_most_tokens():
    limits = [1, 9, 4, 2]
    free = ids_of(engine().generate(PROMPTS, Sampling(max_new_tokens=9)))
    answers = engine().generate(PROMPTS, [Sampling(max_new_tokens=limit) for limit in limits])
    assert ids_of(answers) == [[whole[:limit]] for (whole,), limit in zip(free, limits, strict=True)]


def test_an_answer_ends_with_its_stop_id_but_not_before_its_least_tokens():
    ends = prompt(5, [0, 0, 0], seed=4)  # its greedy answer has five tokens, the last one a stop id
    ((short,),) = engine().generate([ends], Sampling(max_new_tokens=9))
    assert len(short.ids) == 5 and short.ids[-1] in TOKENIZER.stop_ids and short.finish_reason == "stop"
    assert not set(short.ids[:-1]) & set(TOKENIZER.stop_ids)
    assert short.text == TOKENIZER.decode(short.ids[:-1])
    ((long,),) = engine().generate([ends], Sampling(max_new_tokens=9, min_new_tokens=7))
    assert long.ids[:4] == short.ids[:4]
    assert len(long.ids) >= 7 and not set(long.ids[:7]) & set(TOKENIZER.stop_ids)
    ((cut,),) = engine().generate([ends], Sampling(max_new_tokens=3))
    assert cut.ids == short.ids[:3] and cut.finish_reason == "length"


def test_a_stop_string_ends_one_row_and_not_the_others():
    free = [answer for (answer,) in engine().generate(PROMPTS, Sampling(max_new_tokens=40))]
    stop = " ".join(free[0].text.split()[2:4])
    cut = engine().generate(PROMPTS, [Sampling(max_new_tokens=40, stop=(stop,)), *[Sampling(max_new_tokens=40)] * 3])
    assert cut[0][0].text == free[0].text.partition(stop)[0]
    first = next(n for n in range(40) if stop in TOKENIZER.decode(free[0].ids[: n + 1]))  # the token that completes it
    assert cut[0][0].finish_reason == "stop" and cut[0][0].ids == free[0].ids[: first + 1]
    assert ids_of(cut[1:]) == [[answer.ids] for answer in free[1:]]


def test_an_answer_has_log_probabilities_if_its_own_row_asked_for_them():
    samplings = [Sampling(max_new_tokens=4, logprobs=wanted) for wanted in (False, True, False, True)]
    answers = [answer for (answer,) in engine().generate(PROMPTS, samplings)]
    assert [answer.logprobs and len(answer.logprobs) for answer in answers] == [None, 4, None, 4]
    beams = [sampling.with_options(num_beams=2) for sampling in samplings[:2]]
    (without,), (having,) = engine().generate(PROMPTS[:2], beams)
    assert without.logprobs is None and len(having.logprobs) == len(having.ids)


def test_a_stream_of_several_answers_is_refused():
    with pytest.raises(ValueError, match="only one answer can be streamed, got n 2"):
        next(engine().stream(PROMPTS[0], DRAW.with_options(n=2)))


def test_as_many_tokens_as_the_model_has_positions_for():
    ((answer,),) = engine().generate(PROMPTS[1:2], Sampling(max_new_tokens=10**9, min_new_tokens=10**9))
    assert len(answer.ids) == POSITIONS - len(PROMPTS[1].input_ids)


def test_repetition_is_penalised_from_the_prompt_on():
    sampling = Sampling(max_new_tokens=9, repetition_penalty=1000.0)
    for one, (answer,) in zip(PROMPTS, engine().generate(PROMPTS, sampling), strict=True):
        assert len({*answer.ids} - {*one.input_ids.tolist()}) == len(answer.ids)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), Sampling(max_new_tokens=40, num_beams=2)])
def test_a_stream_that_is_closed_frees_its_caches(sampling):
    list(engine().stream(PROMPTS[0], sampling))
    before = live_bytes()
    stream = engine().stream(PROMPTS[0], sampling)
    next(stream)
    assert live_bytes() > before + 10_000  # its text cache alone has 70 kB
    stream.close()
    assert live_bytes() == before


def test_a_stream_whose_consumer_fails_frees_its_caches():
    before = live_bytes()

    def consume():
        for _ in engine().stream(PROMPTS[0], Sampling(max_new_tokens=40)):
            raise KeyError("the consumer's own")

    with pytest.raises(KeyError):
        consume()
    assert live_bytes() == before


@pytest.mark.parametrize("program", [programs.store, programs.prefill, programs.decode])
def test_a_stream_that_runs_out_of_memory_frees_its_caches_and_harms_no_later_one(program):
    expected = "".join(engine().stream(PROMPTS[0], Sampling(max_new_tokens=9)))
    before = live_bytes()
    with pytest.raises(OutOfMemory, match="memory ran out"), memory_running_out(program):
        list(engine().stream(PROMPTS[0], Sampling(max_new_tokens=9)))
    assert live_bytes() == before
    assert "".join(engine().stream(PROMPTS[0], Sampling(max_new_tokens=9))) == expected
