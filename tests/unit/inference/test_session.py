"""A turn's answer is that of a fresh run on the whole history, for the price of what is new."""

from collections import Counter

import pytest

from owl3_jax.inference import memory, programs
from owl3_jax.inference.caches import text_bytes
from owl3_jax.inference.memory import OutOfMemory
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.inference.session import Session
from owl3_jax.inference.text_stream import TextStream
from owl3_jax.processing.images import UnreadableImage
from tests.tiny import COMPUTE
from tests.unit.inference.tiny_engine import (
    POSITIONS,
    engine,
    engine_config,
    images,
    live_bytes,
    memory_running_out,
    processor,
    runtime,
)

GREEDY = Sampling(max_new_tokens=6)
TURNS = [("Which digit is red?", [*images(2)]), ("How many images?", []), ("Describe the image.", [*images(1, seed=1)])]


def new_session() -> Session:
    return Session(runtime(), processor())


def fresh(session: Session, question: str, pictures, sampling=GREEDY) -> str:
    """The answer to a question after the session's history, without its caches. `pictures` are those of all turns."""
    turn = {"role": "user", "content": "<|image|>\n" * (len(pictures) - images_of(session)) + question}
    prompt = processor().prepare([*session.messages, turn], pictures)
    return engine().generate([prompt], sampling)[0][0].text


def images_of(session: Session) -> int:
    return sum(message["content"].count("<|image|>") for message in session.messages)


@pytest.fixture
def work(monkeypatch) -> Counter:
    """Counts images that are encoded and tokens that are prefilled."""
    counted: Counter = Counter()
    original = Runtime.run_model

    def run_model(self, program, *arguments, **options):
        if program is programs.encode:
            counted["images"] += len(arguments[0])
        if program is programs.prefill:
            counted["tokens"] += int((arguments[0].segment_ids != 0).sum())
        return original(self, program, *arguments, **options)

    monkeypatch.setattr(Runtime, "run_model", run_model)
    return counted


def test_turns_equal_fresh_runs_on_the_whole_history():
    session, shown = new_session(), []
    for question, pictures in TURNS:
        shown += pictures
        expected = fresh(session, question, shown)
        assert session.ask(question, pictures, sampling=GREEDY) == expected
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
    assert images_of(session) == 3


def test_a_turn_pays_for_what_is_new(work):
    session, shown = new_session(), []
    for question, pictures in TURNS:
        shown += pictures
        work.clear()
        known, history = session.cached_tokens, list(session.messages)
        session.ask(question, pictures, sampling=GREEDY)
        whole = processor().prepare([*history, session.messages[-2]], shown)
        assert work["images"] == len(pictures)
        assert work["tokens"] == len(whole.input_ids) - known
        assert session.cached_tokens >= len(whole.input_ids)
    assert known > 40


def test_a_stream_that_is_closed_leaves_a_session_that_goes_on():
    session, (question, pictures) = new_session(), TURNS[0]
    stream = session.stream(question, pictures, sampling=Sampling(max_new_tokens=40))
    pieces = [next(stream), next(stream)]
    stream.close()
    assert session.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    expected = fresh(session, TURNS[1][0], pictures)
    assert session.ask(TURNS[1][0], sampling=GREEDY) == expected


def test_an_image_that_cannot_be_read_leaves_the_session_as_it_was():
    session, (question, pictures) = new_session(), TURNS[0]
    session.ask(question, pictures, sampling=GREEDY)
    messages, cached = session.messages, session.cached_tokens
    for good in (1, 2, 3):  # the vision tower takes two at a time: some are stored before the bad one comes
        with pytest.raises(UnreadableImage):
            session.ask("Describe the image.", [*images(good), b"no image"], sampling=GREEDY)
    assert (session.messages, session.cached_tokens) == (messages, cached)
    shown = [*pictures, *images(1, seed=1)]
    expected = fresh(session, TURNS[2][0], shown)
    assert session.ask(TURNS[2][0], shown[2:], sampling=GREEDY) == expected


def test_a_first_turn_that_fails_leaves_an_empty_session():
    session, (question, pictures) = new_session(), TURNS[0]
    with pytest.raises(UnreadableImage):
        session.ask(question, [*pictures, b"no image"])
    assert session.messages == () and session.cached_tokens == 0
    expected = fresh(session, question, pictures)
    assert session.ask(question, pictures, sampling=GREEDY) == expected


@pytest.mark.parametrize(("program", "at_call"), [(programs.store, 1), (programs.prefill, 1), (programs.decode, 3)])
def test_a_turn_that_runs_out_of_memory_is_forgotten_and_the_conversation_goes_on(program, at_call):
    session, shown = new_session(), [*TURNS[0][1]]
    before = live_bytes()
    session.ask(*TURNS[0], sampling=GREEDY)
    messages = session.messages
    with pytest.raises(OutOfMemory, match="memory ran out"), memory_running_out(program, at_call=at_call):
        session.ask(*TURNS[2], sampling=GREEDY)
    assert (session.messages, session.cached_tokens) == (messages, 0)
    assert live_bytes() == before, "the caches that a program had been given are of no use any more"
    for question, pictures in TURNS[1:]:
        shown += pictures
        expected = fresh(session, question, shown)
        assert session.ask(question, pictures, sampling=GREEDY) == expected


def test_progress_counts_the_images_of_the_turn():
    session, calls = new_session(), []
    for question, pictures in (TURNS[0], TURNS[1], ("Which digit is red?", [*images(3, seed=2)])):
        list(session.stream(question, pictures, sampling=GREEDY, advance=lambda *counts: calls.append(counts)))
    assert calls == [(2, 2), (2, 3), (1, 3)]


def test_a_stream_that_is_closed_keeps_no_more_than_the_caches():
    session, sampling = new_session(), Sampling(max_new_tokens=40)
    before = live_bytes()
    list(session.stream(*TURNS[0], sampling=sampling))
    whole, other = live_bytes() - before, new_session()
    stream = other.stream(*TURNS[0], sampling=sampling)
    next(stream)
    stream.close()
    assert live_bytes() - before == 2 * whole


def test_a_turn_by_beam_search():
    session, beams, shown = new_session(), Sampling(max_new_tokens=6, num_beams=3), []
    for question, pictures in TURNS:
        shown += pictures
        expected = fresh(session, question, shown, beams)
        assert session.ask(question, pictures, sampling=beams) == expected


def test_several_answers_to_a_turn_are_refused():
    with pytest.raises(ValueError, match="only one answer can be streamed, got n 2"):
        new_session().ask("How many images?", sampling=Sampling(n=2, temperature=1.0))
    with pytest.raises(ValueError, match=r"without log-probabilities; use Engine\.generate"):
        new_session().ask("How many images?", sampling=Sampling(logprobs=True))


def test_a_question_may_have_one_image_no_images_or_parts():
    picture = images(1)[0]
    expected = new_session().ask("Which digit is red?", [picture], sampling=GREEDY)
    assert new_session().ask("Which digit is red?", picture, None, sampling=GREEDY) == expected
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "Which digit is red?"}]
    session = new_session()
    assert session.ask(parts, sampling=GREEDY) == expected
    assert session.messages[0] == {"role": "user", "content": "<|image|>\nWhich digit is red?"}
    new_session().ask("How many images?", None, sampling=GREEDY)
    for wrong in (None, 3, {"role": "user", "content": "hi"}):
        with pytest.raises(ValueError, match="it must be a string, or a list of parts"):
            new_session().ask(wrong)


def test_a_turn_whose_caches_would_not_fit_is_an_error_before_they_grow(monkeypatch):
    session = new_session()
    session.ask(*TURNS[0], sampling=GREEDY)
    messages = session.messages
    with monkeypatch.context() as little:
        little.setattr(memory, "free_bytes", lambda: 1000)
        with pytest.raises(OutOfMemory, match=r"caches of \d+ tokens and [56] images need .* GiB are free"):
            session.ask("Describe the image.", [*images(3, seed=1)], sampling=GREEDY)
    assert session.messages == messages
    expected = fresh(session, TURNS[1][0], TURNS[0][1])
    assert session.ask(TURNS[1][0], sampling=GREEDY) == expected


def test_as_many_tokens_as_fit_need_no_more_room_than_the_model_has_positions():
    before, session = live_bytes(), new_session()
    assert session.ask(TURNS[1][0], sampling=Sampling(max_new_tokens=10**9, stop=(" ",)))
    assert live_bytes() - before < 4 * POSITIONS * text_bytes(engine_config("gated"), COMPUTE, 1, 1)


def test_a_second_stream_is_refused_until_the_first_is_over():
    session, (question, pictures) = new_session(), TURNS[0]
    stream = session.stream(question, pictures, sampling=Sampling(max_new_tokens=40))
    pieces = [next(stream)]
    with pytest.raises(RuntimeError, match="still streaming an answer"):
        session.ask(*TURNS[2], sampling=GREEDY)
    pieces.append(next(stream))
    stream.close()
    assert session.messages[-1]["content"] == "".join(pieces)
    expected = fresh(session, TURNS[1][0], pictures)
    assert session.ask(TURNS[1][0], sampling=GREEDY) == expected


def test_an_answer_that_spells_a_placeholder_is_text(monkeypatch):
    session = new_session()
    with monkeypatch.context() as spelling:
        spelling.setattr(TextStream, "push", lambda self, ids: "as in <|image|>" if ids else "")
        spelling.setattr(TextStream, "finish", lambda self: "")
        session.ask(*TURNS[0], sampling=Sampling(max_new_tokens=1))
    assert session.messages[-1]["content"] == "as in <|image|>"
    turn = {"role": "user", "content": TURNS[1][0]}
    prompt = processor().prepare([*session.messages, turn], TURNS[0][1])
    assert session.ask(TURNS[1][0], sampling=GREEDY) == engine().generate([prompt], GREEDY)[0][0].text


def test_a_conversation_that_gets_too_long_is_an_error_and_can_go_on_shorter():
    session = new_session()
    session.ask(*TURNS[0], sampling=GREEDY)
    with pytest.raises(ValueError, match=rf"the conversation has \d+ tokens, the model has {POSITIONS} positions"):
        session.ask("red " * POSITIONS)
    expected = fresh(session, TURNS[1][0], TURNS[0][1])
    assert session.ask(TURNS[1][0], sampling=GREEDY) == expected


def test_a_session_that_is_dropped_frees_its_caches():
    new_session().ask(TURNS[0][0], TURNS[0][1], sampling=GREEDY)
    before = live_bytes()
    session = new_session()
    session.ask(TURNS[0][0], TURNS[0][1], sampling=GREEDY)
    assert live_bytes() > before + 10_000
    del session
    assert live_bytes() == before
