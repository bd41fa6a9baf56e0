"""Batches equal single runs and whole forward passes; errors say what to do."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.inference import buckets, memory, programs
from owl3_jax.inference import runtime as runtime_module
from owl3_jax.inference.engine import Engine, forward
from owl3_jax.inference.memory import OutOfMemory
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.tokenizer import ChatTokenizer
from tests.tiny import FORMS
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference.tiny_engine import (
    POSITIONS,
    TOKENIZER,
    check_greedy,
    engine,
    images,
    processor,
    prompt,
    runtime,
    uncached,
)

GREEDY = Sampling(max_new_tokens=9, logprobs=True)
TEXT_ALONE = GREEDY.with_options(logprobs=False)  # as a stream gives it
# Ragged in every way: no image, images at one position, more of them in one row than in all others.
RAGGED = [prompt(33), prompt(47, [0, 3, 3, 17, 30, 31, 46], seed=1), prompt(16, [15], seed=2), prompt(5, [0, 2], seed=3)]


@st.composite
def prompts(draw):
    """At most 16 tokens, and no image or three or four: sizes of few buckets."""
    tokens = draw(st.integers(1, 16))
    starts = draw(st.just([]) | st.lists(st.integers(0, tokens - 1), min_size=3, max_size=4))
    return prompt(tokens, sorted(starts), draw(st.integers(0, 99)))


@pytest.mark.parametrize("form", FORMS)
@given(rows=st.lists(prompts(), min_size=3, max_size=4))
# Always the same examples: in some of all, two logits are closer than float32 rounds.
@settings(deadline=None, max_examples=5, derandomize=True)
def test_a_batch_equals_single_runs_and_whole_forward_passes(form, rows):
    together = [answer for (answer,) in engine(form).generate(rows, GREEDY)]
    for row, answer in zip(rows, together, strict=True):
        ((alone,),) = engine(form).generate([row], GREEDY)
        assert (alone.text, alone.ids, alone.finish_reason) == (answer.text, answer.ids, answer.finish_reason)
        np.testing.assert_allclose(alone.logprobs, answer.logprobs, rtol=0, atol=ENGINE_LOGITS)
    check_greedy(form, rows, together, ENGINE_LOGITS)


def test_long_prompts_are_read_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(buckets, "PREFILL_CHUNK", 16)
    answers = [answer for (answer,) in engine("joint").generate(RAGGED, GREEDY)]
    check_greedy("joint", RAGGED, answers, ENGINE_LOGITS)


def test_image_attention_in_chunks_of_one_image(monkeypatch):
    monkeypatch.setitem(runtime_module._CHUNK_BYTES, "cpu", 1)
    answers = [answer for (answer,) in engine("static").generate(RAGGED, GREEDY)]
    check_greedy("static", RAGGED, answers, ENGINE_LOGITS)


def test_images_are_encoded_a_few_at_a_time():
    calls = []
    rows = [prompt(7, [1, 2, 3]), prompt(5), prompt(9, [4, 6])]
    engine().generate(rows, GREEDY, advance=lambda *counts: calls.append(counts))
    assert calls == [(2, 5), (2, 5), (1, 5)]


def test_logits_of_one_prompt_are_those_of_a_batch():
    for sample, expected in zip(RAGGED[2:], uncached("gated", RAGGED[2:]), strict=True):
        np.testing.assert_allclose(forward(runtime(), sample), expected, rtol=0, atol=ENGINE_LOGITS)


def test_prompts_whose_images_are_not_decoded_yet():
    question, pictures = "Which digit is red?", list(images(3))
    ready, prepared = processor()(question, pictures), processor().prepare(question, pictures)
    answers = engine().generate([ready, prepared], GREEDY)
    assert answers[0][0].ids == answers[1][0].ids
    np.testing.assert_array_equal(forward(runtime(), ready), forward(runtime(), prepared))


def test_a_stream_joins_to_the_answer():
    ((answer,),) = engine().generate([RAGGED[2]], GREEDY)
    pieces = list(engine().stream(RAGGED[2], TEXT_ALONE))
    assert "".join(pieces) == answer.text
    assert len(pieces) > 4 and all(pieces)


def test_the_vision_batch_changes_no_answer():
    batches = [Engine(dataclasses.replace(runtime(), vision_batch_size=size), TOKENIZER) for size in (1, 8)]
    expected = engine().generate(RAGGED[1:2], GREEDY)[0][0].ids
    assert [batch.generate(RAGGED[1:2], GREEDY)[0][0].ids for batch in batches] == [expected] * 2


def test_an_answer_ends_with_the_models_positions():
    ((answer,),) = engine().generate([prompt(POSITIONS - 3)], GREEDY)
    assert len(answer.ids) == 3 and answer.finish_reason == "length"


@pytest.mark.parametrize("form", FORMS)
def test_padding_to_a_batch_size_changes_no_answer(form):
    alone = [engine(form).generate([row], GREEDY)[0][0] for row in RAGGED]
    padded = [answer for (answer,) in engine(form).generate(RAGGED, GREEDY, size=BatchSize(6, PromptSize(90, 9)))]
    check_greedy(form, RAGGED, padded, ENGINE_LOGITS)
    assert [answer.ids for answer in padded] == [answer.ids for answer in alone]
    for found, expected in zip(padded, alone, strict=True):
        np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=ENGINE_LOGITS)


def test_padding_that_no_row_needs_is_not_read(monkeypatch):
    """A chunk of padding alone is left out, whatever the size; what is read is read in the chunks of the whole size."""
    monkeypatch.setattr(buckets, "PREFILL_CHUNK", 16)
    chunks, run_model = [], Runtime.run_model

    def noting(self, program, *arguments, **options):
        if program is programs.prefill:
            chunks.append(arguments[0].tokens.shape)
        return run_model(self, program, *arguments, **options)

    monkeypatch.setattr(Runtime, "run_model", noting)
    engine().generate([prompt(5), prompt(17)], GREEDY, size=BatchSize(3, PromptSize(60, 0)))
    assert chunks == [(3, 16), (3, 16)]


@pytest.mark.parametrize("rows", [[prompt(5)] * 3, [prompt(5), prompt(9)], [prompt(5, [0, 1])]])
def test_prompts_that_do_not_fit_the_batch_size_are_an_error(rows):
    with pytest.raises(ValueError, match="do not fit into the requested batch size, 2 rows of 8 tokens and 1 images"):
        engine().generate(rows, GREEDY, size=BatchSize(2, PromptSize(8, 1)))


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_ends_with_its_stop_id(form):
    """One that is free until its limit; with a token of its own as the stop id, it is the same up to that one."""
    free = [answer.ids for (answer,) in Engine(runtime(form), tokenizer_that_stops_at()).generate(RAGGED, GREEDY)]
    stop = free[1][3]
    stopped = Engine(runtime(form), tokenizer_that_stops_at(stop, 31)).generate(RAGGED, GREEDY)
    for ids, (answer,) in zip(free, stopped, strict=True):
        ends = [index for index, token in enumerate(ids) if token in (stop, 31)]
        assert answer.ids == ids[: ends[0] + 1 if ends else 9] and len(ids) == 9
        assert answer.finish_reason == ("stop" if ends else "length")


def tokenizer_that_stops_at(*stop_ids: int) -> ChatTokenizer:
    tokenizer = mock.create_autospec(ChatTokenizer, instance=True, stop_ids=stop_ids)
    tokenizer.decode.return_value = ""
    return tokenizer


def test_no_prompts_have_no_answers():
    assert engine().generate([], GREEDY) == []


@pytest.mark.parametrize("tokens", [POSITIONS, POSITIONS + 5])
def test_a_prompt_that_is_too_long_is_an_error(tokens):
    message = (
        rf"prompt 1 has {tokens} tokens, the model has {POSITIONS} positions \(max_position_embeddings\); use fewer images"
    )
    with pytest.raises(ValueError, match=message):
        engine().generate([prompt(5), prompt(tokens)], GREEDY)


def test_a_prompt_without_tokens_is_an_error():
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        engine().generate([prompt(0)], GREEDY)
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        next(engine().stream(prompt(0), TEXT_ALONE))


def test_samplings_that_do_not_go_together_are_an_error():
    with pytest.raises(ValueError, match="must have the same n and num_beams"):
        engine().generate([prompt(5)] * 2, [GREEDY, GREEDY.with_options(num_beams=2)])
    with pytest.raises(ValueError, match="there are 2 prompts, but 1 samplings"):
        engine().generate([prompt(5)] * 2, [GREEDY])


def test_caches_that_do_not_fit_are_an_error_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**28)
    slots = buckets.text_slots(POSITIONS - 5)  # of 9000 new tokens the model has positions for so many behind the prompt's
    # Of text: 5 layers, keys and values, 14 float32s; of each of four images: 2 layers, 9 tokens.
    needed = 4096 * ((64 + slots) * 5 * 2 * 14 * 4 + 4 * 2 * 9 * 2 * 14 * 4) / 2**30
    message = rf"64 tokens and 4 images, with 1 x {slots} tokens of answers, need {needed:.1f} GiB on each device, 0.2 GiB are"
    with pytest.raises(OutOfMemory, match=message):
        engine().generate([prompt(5, [0, 1, 2])] * 4096, GREEDY.with_options(max_new_tokens=9000))
