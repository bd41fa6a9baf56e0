"""Answers of many requests together are those of each alone; images and text that requests share are read once."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from owl3_jax.inference import paged_programs
from owl3_jax.inference.jitted import Jitted
from owl3_jax.inference.sampling import Sampling
from owl3_jax.pretrained import Owl3Checkpoint
from owl3_jax.processing.processor import Processor
from owl3_jax.serving.engine import Engine, start_engine
from owl3_jax.serving.generation import Begun, EngineClosedError, QueueFullError, TooLargeError, View
from owl3_jax.serving.pace import Pace
from owl3_jax.serving.pools import Pools
from owl3_jax.serving.settings import EngineSettings
from owl3_jax.serving.steps import Steps
from tests.tiny import FORMS
from tests.tolerances import ENGINE_LOGITS
from tests.unit.inference import tiny_engine
from tests.unit.inference.tiny_engine import POSITIONS, continued, memory_running_out, prompt
from tests.unit.serving.serving_engine import LONGEST, SMALL, Listening, ask, asked, generation, serving

GREEDY = Sampling(max_new_tokens=9, logprobs=True)
RAGGED = [
    prompt(33),
    prompt(47, [0, 3, 3, 17, 30, 31, 46], seed=1),
    prompt(16, [15], seed=2),
    prompt(5, [0, 2], seed=3),
    prompt(64, [40], seed=4),
    prompt(1, seed=5),
]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Prompts are read 16 tokens at a time: one size for all, so that it compiles once."""
    monkeypatch.setattr("owl3_jax.inference.buckets.PREFILL_CHUNK", 16)


def alone(sample, sampling, form="gated"):
    """By the engine that answers batches."""
    return tiny_engine.engine(form).generate([sample], sampling)[0]


@pytest.mark.parametrize("form", FORMS)
def test_answers_together_are_those_of_each_alone(form):
    several = RAGGED if form == "gated" else RAGGED[1:3]
    with serving(form) as engine:
        for sample, found in zip(several, asked(engine, several, GREEDY), strict=True):
            (answer,) = alone(sample, GREEDY, form)
            assert (found.text, found.ids, found.finish_reason) == (answer.text, answer.ids, answer.finish_reason)
            logprobs = [token.logprob for token in found.tokens]
            np.testing.assert_allclose(logprobs, answer.logprobs, rtol=0, atol=ENGINE_LOGITS)


def test_long_prompts_are_read_in_chunks_between_the_tokens_of_others():
    long = [prompt(150, [0, 20, 77, 149], seed=6), prompt(97, seed=7)]
    with serving() as engine:
        for sample, found in zip(long + RAGGED, asked(engine, long + RAGGED, GREEDY), strict=True):
            assert found.ids == alone(sample, GREEDY)[0].ids


def test_an_image_is_encoded_once_whoever_shows_it_and_wherever():
    shown = tiny_engine.images(6, seed=9)
    places = [(0, 1, 2, 3, 4, 5), (5, 9, 13, 20, 21, 22), (7, 7, 7, 7, 7, 7), (1, 3, 5, 7, 9, 11)] * 2
    samples = [prompt(24, starts, seed=at)._replace(pixel_values=shown) for at, starts in enumerate(places)]
    with serving() as engine:
        found = asked(engine, samples, GREEDY)
        load = engine.load()
        assert load.images_encoded == 6 and load.pages_idle == 6 and load.pages_used == 0
        for sample, each in zip(samples, found, strict=True):
            assert each.ids == alone(sample, GREEDY)[0].ids
        assert [ask(engine, samples[1], GREEDY).begun.cached_images] == [6]


def test_a_cpu_encodes_one_image_at_a_time(monkeypatch):
    encode, sizes = Steps.encode, list[int]()
    monkeypatch.setattr(Steps, "encode", lambda steps, images: (sizes.append(len(images)), encode(steps, images)))
    assert tiny_engine.runtime().vision_batch_size > 1
    owl = Owl3Checkpoint(tiny_engine.runtime(), lambda: Processor(tiny_engine.TOKENIZER, 8))
    engine = start_engine(owl, EngineSettings(**SMALL))
    assert ask(engine, prompt(24, [0, 3, 9], seed=1), GREEDY).wait().ids
    engine.close(LONGEST)
    assert sizes == [1, 1, 1]


def test_pages_of_an_image_are_shared_while_several_requests_show_it():
    shown = tiny_engine.images(3, seed=10)
    samples = [prompt(20 + at, (0, 4, 9), seed=at)._replace(pixel_values=shown) for at in range(4)]
    with serving() as engine:
        listening = [ask(engine, sample, Sampling(max_new_tokens=150, min_new_tokens=150)) for sample in samples]
        for each in listening:
            assert each.has_token.wait(LONGEST)
        load = engine.load()
        assert (load.running, load.pages_used, load.pages_shared) == (4, 3, 3)
        for each in listening:
            engine.cancel(each.request_id)


def test_a_follow_up_finds_the_pages_of_its_history():
    """With no session: the same tokens and images are enough, also those of the answer, and of a page that both share."""
    sample = prompt(70, [3, 40, 66], seed=11)
    with serving() as engine:
        first = ask(engine, sample, Sampling(max_new_tokens=40)).wait()
        assert first.begun.cached_tokens == 0
        history = continued(sample, first.ids)
        follow_up = continued(history, [5, 7, 2, 9])
        second = ask(engine, follow_up, GREEDY)
        assert second.begun.cached_images == 3
        assert second.begun.cached_tokens == (len(history.input_ids) - 1) // 32 * 32
        assert second.ids == alone(follow_up, GREEDY)[0].ids


def test_text_behind_other_images_is_other_text():
    """Keys and values of text depend on the images before it: the same words behind another image share nothing."""
    sample = prompt(70, [3, 40, 66], seed=12)
    other = sample._replace(pixel_values=np.concatenate([sample.pixel_values[:2], tiny_engine.images(1, seed=13)]))
    moved = sample._replace(image_starts=np.array([3, 40, 65], np.int32))
    with serving() as engine:
        whole = ask(engine, sample, Sampling(max_new_tokens=40)).wait()
        for changed in (other, moved):
            found = ask(engine, continued(changed, whole.ids), GREEDY)
            assert found.begun.cached_tokens == 64  # the pages before the third image
            assert found.ids == alone(continued(changed, whole.ids), GREEDY)[0].ids


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12, temperature=0.9, seed=3),
        Sampling(max_new_tokens=12, temperature=1.3, top_k=7, top_p=0.9, min_p=0.01, seed=4),
        Sampling(max_new_tokens=12, repetition_penalty=1.7, min_new_tokens=6),
    ],
)
def test_every_setting_is_the_batch_engines(sampling):
    several = dataclasses.replace(sampling, n=3) if sampling.temperature else sampling
    with serving() as engine:
        neighbours = [ask(engine, RAGGED[1], Sampling(max_new_tokens=30))]
        found = [ask(engine, RAGGED[2], sampling, sample=number) for number in range(several.n)]
        assert [each.ids for each in found] == [answer.ids for answer in alone(RAGGED[2], several)]
        assert neighbours[0].ids == alone(RAGGED[1], Sampling(max_new_tokens=30))[0].ids


def test_presence_and_frequency_penalties_keep_an_answer_from_repeating_itself():
    sampling = Sampling(max_new_tokens=14, min_new_tokens=14)
    with serving() as engine:
        plain = ask(engine, RAGGED[0], sampling).ids
        never_again = ask(engine, RAGGED[0], sampling, presence_penalty=1e6).ids
        balanced = ask(engine, RAGGED[0], sampling, frequency_penalty=1e6).ids
        assert len(set(never_again)) == 14 > len(set(plain)) and never_again == balanced
        assert ask(engine, RAGGED[0], sampling).ids == plain


def test_the_likeliest_tokens_are_reported_with_the_one_that_was_chosen():
    with serving() as engine:
        found = ask(engine, RAGGED[0], GREEDY, top_logprobs=5)
        assert found.ids == alone(RAGGED[0], GREEDY)[0].ids
        for token in found.tokens:
            ids, logprobs = zip(*token.top, strict=True)
            assert len(set(ids)) == 5 and ids[0] == token.id and logprobs[0] == token.logprob
            assert list(logprobs) == sorted(logprobs, reverse=True)
            assert sum(np.exp(logprobs)) <= 1.0001


def test_stop_texts_end_an_answer():
    with serving() as engine:
        whole = ask(engine, RAGGED[0], Sampling(max_new_tokens=20)).text
        stop = whole[4:6]
        (expected,) = alone(RAGGED[0], Sampling(max_new_tokens=20, stop=(stop,)))
        found = ask(engine, RAGGED[0], Sampling(max_new_tokens=20, stop=(stop,)))
        assert (found.text, found.finish_reason) == (expected.text, "stop") and len(found.text) < len(whole)


def test_who_leaves_frees_all_at_once():
    with serving() as engine:
        staying = ask(engine, RAGGED[0], Sampling(max_new_tokens=60))
        leaving = [ask(engine, sample, Sampling(max_new_tokens=150, min_new_tokens=130)) for sample in RAGGED[1:]]
        assert leaving[-1].has_token.wait(LONGEST)
        for each in leaving:
            engine.cancel(each.request_id)
        engine.cancel("nobody")
        assert staying.ids == alone(RAGGED[0], Sampling(max_new_tokens=60))[0].ids
        assert not any(each.is_over.is_set() for each in leaving)
        load = engine.load()
        assert (load.waiting, load.running, load.pages_used, load.text_pages_used) == (0, 0, 0, 0)


def test_the_queue_has_a_bound():
    with serving(max_running=1, max_queued=2) as engine:
        first = ask(engine, RAGGED[0], Sampling(max_new_tokens=150, min_new_tokens=150))
        assert first.has_token.wait(LONGEST)
        waiting = [ask(engine, RAGGED[0], GREEDY) for _ in range(2)]
        with pytest.raises(QueueFullError) as refused:
            ask(engine, RAGGED[0], GREEDY)
        assert refused.value.retry_after >= 1
        engine.cancel(first.request_id)
        assert {each.ids for each in waiting} == {alone(RAGGED[0], GREEDY)[0].ids}


def test_those_for_whom_there_are_places_do_not_wait(monkeypatch):
    may_go, turn = threading.Event(), Engine._turn
    monkeypatch.setattr(Engine, "_turn", lambda engine: (may_go.wait(LONGEST), turn(engine)))
    with serving(max_running=4, max_queued=1) as engine:
        burst = [ask(engine, RAGGED[0], GREEDY) for _ in range(5)]  # before the engine has looked at the first
        with pytest.raises(QueueFullError):
            ask(engine, RAGGED[0], GREEDY)
        may_go.set()
        assert {each.ids for each in burst} == {alone(RAGGED[0], GREEDY)[0].ids}


def test_the_queue_has_a_bound_of_pixels_which_are_held_once():
    shown, size = tiny_engine.images(8, seed=20), tiny_engine.images(1).nbytes
    samples = [prompt(12, range(8), seed=at)._replace(pixel_values=shown) for at in range(4)]
    other = prompt(12, [0, 1], seed=21)
    with serving(max_running=1, queue_gib=9 * size / 2**30) as engine:
        first = ask(engine, RAGGED[0], Sampling(max_new_tokens=150, min_new_tokens=150))
        assert first.has_token.wait(LONGEST)
        waiting = [ask(engine, sample, GREEDY) for sample in samples]
        with pytest.raises(QueueFullError):
            ask(engine, other, GREEDY)
        assert ask(engine, RAGGED[0], GREEDY)  # has no images
        engine.cancel(first.request_id)
        assert [each.ids for each in waiting] == [alone(sample, GREEDY)[0].ids for sample in samples]
        assert ask(engine, other, GREEDY).ids == alone(other, GREEDY)[0].ids
        assert not engine._held


def test_the_pixels_of_who_has_left_are_forgotten():
    with serving(max_running=1) as engine:
        first = ask(engine, RAGGED[0], Sampling(max_new_tokens=150, min_new_tokens=150))
        assert first.has_token.wait(LONGEST)
        waiting = ask(engine, RAGGED[1], GREEDY)
        assert len(engine._held) == 7
        engine.cancel(waiting.request_id)
        deadline = time.monotonic() + LONGEST
        while engine._held:
            assert time.monotonic() < deadline
        engine.cancel(first.request_id)


@pytest.fixture
def held_images(monkeypatch):
    """Images are not encoded before the test says so; returns whether one is waited for, and how that is said."""
    encode, is_there, may_go = Steps.encode, threading.Event(), threading.Event()

    def encode_later(steps, images):
        is_there.set()
        assert may_go.wait(LONGEST)
        encode(steps, images)

    monkeypatch.setattr(Steps, "encode", encode_later)
    yield is_there, may_go
    may_go.set()


@pytest.mark.parametrize("settings", [{"max_running": 1}, {"cache_gib": 0.0006}], ids=["places", "pages"])
def test_long_prompts_do_not_keep_a_short_one_from_its_place_and_pages(settings, held_images, monkeypatch):
    monkeypatch.setattr(Pace, "work", lambda pace, request: 1000.0 * len(request.prompt))
    is_there, may_go = held_images
    long, short = [prompt(60, range(0, 48, 6), seed=at) for at in range(8)], prompt(5, [0, 2], seed=30)
    begun = []
    with serving(**settings) as engine:
        several = [ask(engine, sample, GREEDY) for sample in long]
        assert is_there.wait(LONGEST)
        assert engine.load().waiting > 0
        quick = Listening("quick")
        has_begun = lambda event: begun.extend([sum(map(len, (each.events for each in several)))] * isinstance(event, Begun))
        engine.submit(generation(short, GREEDY, request_id="quick"), lambda event: (has_begun(event), quick(event)))
        may_go.set()
        assert quick.ids == alone(short, GREEDY)[0].ids and begun == [0]  # nothing had come of the long ones
        assert [each.ids for each in several] == [alone(sample, GREEDY)[0].ids for sample in long]
        # What was read before they had to wait is not called cached.
        assert {(each.begun.cached_tokens, each.begun.cached_images) for each in several} == {(0, 0)}
        load = engine.load()
        assert (load.waiting, load.running, load.pages_used, load.text_pages_used) == (0, 0, 0, 0)


def test_a_failure_while_places_are_given_anew_leaves_nobody_waiting(held_images, monkeypatch):
    monkeypatch.setattr(Pace, "work", lambda pace, request: 1000.0 * len(request.prompt))
    is_there, may_go = held_images
    borrow = Pools.borrow

    def fail_for_a_short_one(pools, tokens, *arguments, **options):
        if len(tokens) == 5:
            raise MemoryError
        return borrow(pools, tokens, *arguments, **options)

    monkeypatch.setattr(Pools, "borrow", fail_for_a_short_one)
    with serving(max_running=1) as engine:
        several = [ask(engine, prompt(60, [0, 1]), GREEDY)]
        assert is_there.wait(LONGEST)
        several.append(ask(engine, prompt(5), GREEDY))
        may_go.set()
        assert {each.failure.code for each in several} == {"out_of_memory"}
        assert ask(engine, RAGGED[0], GREEDY).ids == alone(RAGGED[0], GREEDY)[0].ids


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        (prompt(POSITIONS), f"{POSITIONS} tokens"),
        (prompt(0), "no tokens"),
        (prompt(40, range(9)), "9 images"),
    ],
)
def test_what_can_never_be_answered_is_refused(sample, named):
    with serving() as engine, pytest.raises(TooLargeError, match=named):
        ask(engine, sample, GREEDY)


def test_an_answer_ends_where_the_model_has_no_more_positions():
    sample = prompt(POSITIONS - 3, seed=14)
    with serving() as engine:
        found = ask(engine, sample, Sampling(max_new_tokens=9, min_new_tokens=9))
        assert len(found.ids) == 3 and found.finish_reason == "length"
        assert found.ids == alone(sample, Sampling(max_new_tokens=9, min_new_tokens=9))[0].ids


def test_a_failed_step_is_an_error_of_those_it_was_for_and_of_nobody_after_them():
    with serving() as engine:
        with memory_running_out(paged_programs.read, at_call=4):
            failed = [ask(engine, sample, Sampling(max_new_tokens=60)) for sample in RAGGED[:3]]
            for each in failed:
                assert each.failure.status == 503 and each.failure.code == "out_of_memory"
                assert "0x" not in each.failure.message
        assert ask(engine, RAGGED[1], GREEDY).ids == alone(RAGGED[1], GREEDY)[0].ids
        assert engine.load().pages_used == 0


def test_a_listener_that_fails_costs_nobody_else_the_answer():
    def fail(event):
        raise RuntimeError(str(event))

    with serving() as engine:
        for number in range(3):
            engine.submit(generation(RAGGED[1], GREEDY, request_id=f"fails-{number}"), fail)
        assert ask(engine, RAGGED[0], GREEDY).ids == alone(RAGGED[0], GREEDY)[0].ids
    assert engine.load().text_pages_used == 0


def test_who_has_left_hears_nothing_more():
    heard = []

    def leave(event):
        heard.append(event)
        engine.cancel("leaves")

    with serving() as engine:
        engine.submit(generation(RAGGED[0], GREEDY, request_id="leaves"), leave)
        ask(engine, RAGGED[0], GREEDY).wait()
    assert [type(event) for event in heard] == [Begun]
    assert engine.load().text_pages_used == 0


def test_a_request_whose_pages_cannot_be_had_is_an_error_of_that_request(monkeypatch):
    borrow, failing = Pools.borrow, iter([True])

    def fail_once(pools, *arguments, **options):
        if next(failing, False):
            raise MemoryError
        return borrow(pools, *arguments, **options)

    monkeypatch.setattr(Pools, "borrow", fail_once)
    with serving() as engine:
        assert ask(engine, RAGGED[0], GREEDY).failure.code == "out_of_memory"
        assert ask(engine, RAGGED[0], GREEDY).ids == alone(RAGGED[0], GREEDY)[0].ids


def test_an_engine_that_gets_no_new_pools_after_a_failure_leaves_nobody_waiting(monkeypatch):
    def fail(pools):
        raise MemoryError

    monkeypatch.setattr(Pools, "reset", fail)
    with serving(max_running=1) as engine, memory_running_out(paged_programs.read, at_call=2):
        several = [ask(engine, RAGGED[0], GREEDY) for _ in range(3)]
        assert {each.failure.status for each in several} == {503}
        assert not engine.is_ready
        with pytest.raises(EngineClosedError):
            ask(engine, RAGGED[0], GREEDY)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"views": []}, "0 views for 2 image_starts"),
        ({"image_starts": [2, 0]}, "must ascend"),
        ({"image_starts": [0, 5]}, "within the 5 tokens"),
        ({"views": [View(b"a", np.zeros((12, 12, 3), np.uint8))] * 2}, "12, 12, 3"),
    ],
)
def test_images_that_are_not_described_well_are_refused(changes, named):
    with serving() as engine, pytest.raises(ValueError, match=named):
        ask(engine, RAGGED[3], GREEDY, **changes)


def test_all_programs_are_compiled_before_the_first_request():
    programs = (paged_programs.read, paged_programs.store, paged_programs.choose_next)
    with serving(warm_up=True, max_running=2) as engine:
        while not engine.is_ready:
            time.sleep(0.05)
        compiled = [sizes_of(program) for program in programs]
        plain = Sampling(max_new_tokens=9, temperature=0.5)
        asked(engine, RAGGED, plain)
        asked(engine, RAGGED[:3], Sampling(max_new_tokens=3))
        asked(engine, RAGGED[:2], dataclasses.replace(GREEDY, repetition_penalty=1.2))
        ask(engine, prompt(100), plain, presence_penalty=1.0).wait()
        assert [sizes_of(program) for program in programs] == compiled


def sizes_of(program) -> int:
    """How often it has been compiled."""
    return program.cache_size() if isinstance(program, Jitted) else program._cache_size()


@pytest.mark.parametrize("host_cache_gib", [0.0, 0.001])
def test_images_make_room_for_others_and_come_back(host_cache_gib, monkeypatch):
    samples = [prompt(12, [0, 1, 2, 3, 4, 5, 6, 7], seed=at) for at in range(20)]
    units, has_read, restore = [0], Pace.has_read, Pools.restore

    def restore_and_count(pools, key, page):
        units[-1] += (is_restored := restore(pools, key, page))
        return is_restored

    monkeypatch.setattr(Pools, "restore", restore_and_count)
    monkeypatch.setattr(Pace, "has_read", lambda pace, *args, **of: (units.append(0), has_read(pace, *args, **of)))
    with serving(host_cache_gib=host_cache_gib, cache_gib=0.0006, max_running=2) as engine:
        found = asked(engine, samples, GREEDY)
        load = engine.load()
        assert load.pages_evicted > 0 and load.images_encoded == 160
        again = asked(engine, samples, GREEDY)
        assert [each.ids for each in again] == [each.ids for each in found] == [alone(s, GREEDY)[0].ids for s in samples]
        assert (engine.load().images_encoded > 160) == (host_cache_gib == 0)
        assert max(units) == (2 if host_cache_gib else 0)  # as many in a unit as are encoded at once


def test_closing_finishes_what_is_under_way():
    with serving() as engine:
        listening = [ask(engine, sample, Sampling(max_new_tokens=40)) for sample in RAGGED]
        assert listening[0].has_token.wait(LONGEST) and engine.is_ready
        closing = threading.Thread(target=engine.close, args=(LONGEST,))
        closing.start()
        for sample, each in zip(RAGGED, listening, strict=True):
            assert each.ids == alone(sample, Sampling(max_new_tokens=40))[0].ids
        closing.join()
        assert not engine.is_ready
        with pytest.raises(EngineClosedError):
            ask(engine, RAGGED[0], GREEDY)


def test_closing_has_an_end():
    with serving() as engine:
        listening = ask(engine, RAGGED[0], Sampling(max_new_tokens=150, min_new_tokens=150))
        assert listening.has_token.wait(LONGEST)
        engine.close(timeout=0.0)
        assert listening.failure.code == "shutting_down"


def test_the_same_name_twice_is_refused():
    with serving() as engine:
        first = ask(engine, RAGGED[0], Sampling(max_new_tokens=150, min_new_tokens=150))
        with pytest.raises(ValueError, match="already"):
            engine.submit(generation(RAGGED[0], GREEDY, request_id=first.request_id), Listening("x"))
        engine.cancel(first.request_id)


def test_an_engine_that_cannot_be_made_ready_says_so(monkeypatch):
    monkeypatch.setattr(Steps, "warm_up", lambda *_: 1 / 0)
    with serving(warm_up=True) as engine:
        engine._thread.join(LONGEST)
        assert engine.has_failed and not engine.is_ready
        with pytest.raises(EngineClosedError):
            ask(engine, RAGGED[0], GREEDY)


def test_an_engine_that_was_closed_has_not_failed():
    with serving() as engine:
        assert not engine.has_failed
    assert not engine.has_failed
