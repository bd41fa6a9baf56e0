"""Streams of events cut anywhere, and the answers that they carry."""

import itertools
import json

import pytest

from owl3_jax.serving.bench.answer import Answer, AnswerError, ReportedError
from owl3_jax.serving.bench.events import EventDecoder, EventError
from tests.unit.serving.bench_server import chunk, usage

STREAM = (
    "\ufeff: a comment\r\n"
    'data: {"text": "Eule 🦉 dürfen"}\r\n\r\n'
    "event: message\nid: 7\ndata: two\ndata:lines\n\n"
    "retry: 5\rdata: carriage returns\r\r"
    "data\n\n"
    "\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = ['{"text": "Eule 🦉 dürfen"}', "two\nlines", "carriage returns", "", "[DONE]"]


def decode(*chunks: bytes) -> list[str]:
    decoder = EventDecoder()
    return [event for part in chunks for event in decoder.feed(part)]


def test_a_stream_means_the_same_wherever_it_is_cut():
    assert decode(STREAM) == EVENTS
    for place in range(len(STREAM) + 1):
        assert decode(STREAM[:place], STREAM[place:]) == EVENTS, place


def test_an_event_means_the_same_wherever_it_is_cut_in_three():
    whole = "data: ü🦉\r\n\r\ndata: 2\r\r".encode()
    for first, second in itertools.combinations(range(len(whole) + 1), 2):
        assert decode(whole[:first], whole[first:second], whole[second:]) == ["ü🦉", "2"], (first, second)


def test_a_stream_means_the_same_byte_by_byte():
    assert decode(*(bytes([byte]) for byte in STREAM)) == EVENTS


def test_an_event_that_is_cut_off_counts_as_none():
    assert decode(b"data: whole\n\ndata: half\n") == ["whole"]


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 200, b"data: xxxxxxxxxxxx\n" * 12])
def test_an_event_without_end_is_refused(endless):
    decoder = EventDecoder(limit=100)
    with pytest.raises(EventError, match="longer than 100 bytes"):
        for byte in endless:
            decoder.feed(bytes([byte]))


def test_what_is_not_in_utf_8_is_refused():
    with pytest.raises(EventError, match="not in UTF-8"):
        decode(b"data: \xff\n\n")


def data_of(event: bytes) -> str:
    return event.decode().removeprefix("data: ").strip()


def test_an_answer_notes_when_text_came_and_what_it_took():
    answer = Answer()
    first = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for now, data in enumerate([first, *map(data_of, (chunk("a"), chunk("b"), chunk(None, "stop"), usage(9, 2, 4))), "[DONE]"]):
        answer.take(data, float(now))
    assert (answer.times, answer.texts, answer.finish_reason, answer.is_done) == ([1.0, 2.0], ["a", "b"], "stop", True)
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (9, 2, 4)


def test_a_thought_counts_as_text():
    answer = Answer()
    answer.take('{"choices": [{"delta": {"reasoning_content": "hm"}}]}', 3.0)
    assert answer.times == [3.0]


def test_usage_of_another_form_counts_as_unknown():
    answer = Answer()
    answer.take(
        '{"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": true, "prompt_tokens_details": null}}', 0.0
    )
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (None, None, None)


@pytest.mark.parametrize(
    "data", ["", "nonsense", "[]", "7", "{}", '{"choices": 1}', '{"choices": [1]}', '{"choices": [{}]}', "[" * 100_000]
)
def test_a_chunk_that_is_none_is_refused(data):
    with pytest.raises(AnswerError, match="a chunk is"):
        Answer().take(data, 0.0)


def test_nothing_may_come_after_the_end():
    answer = Answer()
    answer.take("[DONE]", 0.0)
    with pytest.raises(AnswerError, match=r"after \[DONE\]"):
        answer.take("[DONE]", 0.0)


@pytest.mark.parametrize("error", ['{"message": "out of pages"}', '"out of pages"'])
def test_an_error_within_the_stream_is_told(error):
    with pytest.raises(ReportedError, match=r"^out of pages$"):
        Answer().take(f'{{"error": {error}}}', 0.0)
