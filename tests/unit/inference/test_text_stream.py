"""Streamed text against the whole decoded at once, with the released tokenizer."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from owl3_jax.inference.text_stream import TextStream
from owl3_jax.processing.tokenizer import ChatTokenizer
from tests.qwen import chat_tokenizer

TEXTS = ["Two owls", "猫头鹰在树上", "👩‍👩‍👧 🦉🇪🇺", "e\u0301o\u0308 ไทย", "\ufffd", " \n\n", "a\u0000b", "𒀱"]
UNKNOWN = 151_900  # a row of the embedding without a token


def ids_of(text: str) -> list[int]:
    return chat_tokenizer()._tokenizer.encode(text).ids


def _byte_ids() -> list[int]:
    """The token of each byte; in the vocabulary's letters a byte that is no printable character is one above 255."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chat_tokenizer().token_id(chr(byte if byte in printable else next(others))) for byte in range(256)]


BYTES = _byte_ids()
PARTS = st.one_of(
    st.sampled_from(TEXTS).map(ids_of),
    st.sampled_from(TEXTS).map(lambda text: [BYTES[byte] for byte in text.encode()]),
    st.text(max_size=4).map(ids_of),
    st.integers(0, 255).map(lambda byte: [BYTES[byte]]),
    st.sampled_from([[151643], [151645], [UNKNOWN]]),
    st.integers(0, 151_642).map(lambda token: [token]),
)
IDS = st.lists(PARTS, max_size=8).map(lambda parts: list(itertools.chain(*parts)))


def cut(text: str, stop: list[str]) -> tuple[str, bool]:
    """`text` up to the stop string that is complete first, read character by character."""
    for end in range(len(text) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return text[: end - len(string)], True
    return text, False


def stream(ids: list[int], cuts: list[int], stop: list[str]) -> tuple[TextStream, list[str]]:
    answer = TextStream(chat_tokenizer(), stop)
    edges = [0, *sorted(min(edge, len(ids)) for edge in cuts), len(ids)]
    pieces = [answer.push(ids[start:end]) for start, end in itertools.pairwise(edges)]
    return answer, [*pieces, answer.finish()]


@given(ids=IDS, cuts=st.lists(st.integers(0, 60), max_size=40), data=st.data())
@settings(deadline=None, max_examples=300)
def test_pieces_are_the_whole_up_to_the_stop_string_however_split(ids, cuts, data):
    whole = chat_tokenizer().decode(ids)
    places = st.integers(0, max(0, len(whole) - 1))
    slices = st.builds(lambda start, size: whole[start : start + size] or "x", places, st.integers(1, 4))
    stop = data.draw(st.lists(slices, max_size=3))
    answer, pieces = stream(ids, cuts, stop)
    assert ("".join(pieces), answer.stopped) == cut(whole, stop)
    assert answer.text == "".join(pieces)


@given(ids=IDS)
@example(ids=[BYTES[0xFF]] * 9)
@example(ids=[BYTES[0xF0], 151645, BYTES[0x9F], BYTES[0xA6], BYTES[0x89]])  # an owl around a special token
@example(ids=[BYTES[0xF0], BYTES[0x9F], BYTES[0xA6], BYTES[0x89], 151645, BYTES[0x41]])  # and before one
@settings(deadline=None, max_examples=200)
def test_no_text_waits_but_an_incomplete_character(ids):
    answer = TextStream(chat_tokenizer())
    for end, token in enumerate(ids, 1):
        answer.push([token])
        assert answer.text == chat_tokenizer().decode(ids[:end]).removesuffix("\ufffd")


def test_the_beginning_of_a_stop_string_waits():
    answer = TextStream(chat_tokenizer(), ["\n\nUser:", "###"])
    assert [answer.push(ids_of(text)) for text in ["owl", " #", "#", "1", "\n\n", "User", ":"]] == [
        "owl", " ", "", "##1", "", "", "",
    ]  # fmt: skip
    assert (answer.stopped, answer.text) == (True, "owl ##1")
    assert answer.push(ids_of("more")) == answer.finish() == ""


def test_what_waits_comes_at_the_end():
    answer = TextStream(chat_tokenizer(), ["###"])
    pieces = [answer.push(ids_of("a##")), answer.push([BYTES[0xE7]]), answer.finish(), answer.finish()]
    assert pieces == ["a", "", "##\ufffd", ""]
    assert not answer.stopped


@pytest.mark.parametrize("ids", [ids_of("owl 猫🦉" * 300), [BYTES[0x80]] * 2000, [BYTES[0xE7]] * 2000, [151645] * 2000])
def test_the_work_per_token_does_not_grow(ids, monkeypatch):
    decode, decoded = ChatTokenizer.decode, []
    monkeypatch.setattr(ChatTokenizer, "decode", lambda self, ids: decoded.append(len(ids)) or decode(self, ids))
    answer = TextStream(chat_tokenizer())
    for token in ids:
        answer.push([token])
    assert sum(decoded) <= 10 * len(ids)
