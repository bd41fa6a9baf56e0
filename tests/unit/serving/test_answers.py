"""Events of the engine as OpenAI's objects, on their way from its thread, and the bytes of tokens."""

import asyncio
import json
import threading

import pytest
import tokenizers

from owl3_jax.formats.bundled import bundled_checkpoint
from owl3_jax.processing.chat import MARKERS
from owl3_jax.processing.tokenizer import ChatTokenizer
from owl3_jax.processing.tokenizer_files import byte_level_bpe
from owl3_jax.serving.answers import DONE, Asked, Chunks, Tally, Whole
from owl3_jax.serving.errors import ApiError
from owl3_jax.serving.generation import Begun, Event, Failure, Piece, Token
from owl3_jax.serving.mailbox import Mailbox
from owl3_jax.serving.token_bytes import TokenBytes
from tests.fake_serving import Bytes

LETTERS = "über 猫🦉\n\t\x00\x7f"
EVENTS: list[tuple[int, Event]] = [
    (1, Begun(cached_tokens=5, cached_images=2)),
    (0, Begun(cached_tokens=4, cached_images=1)),
    (0, Piece("Hel", (Token(72), Token(101)))),
    (1, Piece("", (Token(195),))),
    (1, Piece("ü", (Token(188),), "stop")),
    (0, Piece("lo", (Token(108),))),
    (0, Piece("", (), "length")),
]


def asked(answers: int = 2, *, has_logprobs: bool = False) -> Asked:
    return Asked("chatcmpl-1", 1700000000, "owl", answers, prompt_tokens=7, images=2, has_logprobs=has_logprobs)


def whole(events: list[tuple[int, Event]], request: Asked) -> dict:
    tally = Tally(request)
    answers = Whole(request, tally, Bytes())
    for number, event in events:
        assert not tally.is_complete
        tally.add(event)
        answers.add(number, event)
    assert tally.is_complete
    return json.loads(answers.completion().model_dump_json())


def chunks(events: list[tuple[int, Event]], request: Asked, *, include_usage: bool = False) -> list[dict]:
    """What a stream says, without its end."""
    tally = Tally(request)
    writer = Chunks(request, tally, Bytes(), include_usage=include_usage)
    lines = list(writer.start())
    for number, event in events:
        tally.add(event)
        lines += writer.add(number, event)
    lines += writer.end()
    assert lines.pop() == DONE
    assert all(line.startswith(b"data: {") and line.endswith(b"}\n\n") and line.count(b"\n") == 2 for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def test_a_completion_has_all_answers_and_counts_their_prompt_once():
    completion = whole(EVENTS, asked())
    assert (completion["id"], completion["object"], completion["model"]) == ("chatcmpl-1", "chat.completion", "owl")
    assert [(each["index"], each["message"]["content"], each["finish_reason"]) for each in completion["choices"]] == [
        (0, "Hello", "length"),
        (1, "ü", "stop"),
    ]
    assert completion["choices"][0]["logprobs"] is None
    assert completion["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4, "images": 2, "cached_images": 1},
    }


def test_a_stream_says_who_speaks_then_what_then_why_it_ended():
    said = chunks(EVENTS, asked())
    assert [each["object"] for each in said] == ["chat.completion.chunk"] * len(said)
    deltas = [(each["choices"][0]["index"], each["choices"][0]["delta"], each["choices"][0]["finish_reason"]) for each in said]
    assert deltas == [
        (0, {"role": "assistant", "content": ""}, None),
        (1, {"role": "assistant", "content": ""}, None),
        (0, {"content": "Hel"}, None),
        (1, {"content": "ü"}, None),
        (1, {}, "stop"),
        (0, {"content": "lo"}, None),
        (0, {}, "length"),
    ]
    assert not any("usage" in each for each in said)


def test_a_stream_ends_with_its_usage_if_that_is_wanted():
    *others, last = chunks(EVENTS, asked(), include_usage=True)
    assert all(each["usage"] is None for each in others)
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 12


def test_log_probabilities_have_the_bytes_of_each_token_even_within_a_character():
    tokens = (Token(195, -0.25, ((195, -0.25), (65, -1.5))), Token(188, float("-inf"), ()))
    events: list[tuple[int, Event]] = [(0, Begun(0, 0)), (0, Piece("", tokens[:1])), (0, Piece("ü", tokens[1:], "stop"))]
    (choice,) = whole(events, asked(1, has_logprobs=True))["choices"]
    assert choice["logprobs"] == {
        "refusal": None,
        "content": [
            {
                "token": "\N{REPLACEMENT CHARACTER}",
                "logprob": -0.25,
                "bytes": [195],
                "top_logprobs": [
                    {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -0.25, "bytes": [195]},
                    {"token": "A", "logprob": -1.5, "bytes": [65]},
                ],
            },
            {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -9999.0, "bytes": [188], "top_logprobs": []},
        ],
    }
    said = chunks(events, asked(1, has_logprobs=True))
    contents = [each["choices"][0].get("logprobs") for each in said]
    assert [token["bytes"] for each in contents if each for token in each["content"]] == [[195], [188]]


def test_a_failure_is_an_error():
    with pytest.raises(ApiError) as raised:
        Tally(asked()).add(Failure(422, "bad_image", "image 1 cannot be read"))
    assert raised.value.status == 422
    assert raised.value.body().model_dump() == {
        "error": {
            "message": "image 1 cannot be read",
            "type": "invalid_request_error",
            "param": None,
            "code": "bad_image",
        }
    }


def test_bytes_of_a_byte_level_vocabulary_are_those_of_the_text():
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "Ã¼"])}
    special = [tokenizers.AddedToken(marker, special=True, normalized=False) for marker in MARKERS]
    tokenizer = byte_level_bpe(vocabulary, [("Ã", "¼")], special)
    spelling = TokenBytes(ChatTokenizer(tokenizer))
    ids = tokenizer.encode(LETTERS, add_special_tokens=False).ids
    assert len(ids) == len(LETTERS.encode()) - 1
    assert [spelling[token] for token in ids[:2]] == ["ü".encode(), b"b"]
    assert b"".join(spelling[token] for token in ids) == LETTERS.encode()
    assert spelling[tokenizer.token_to_id("<|im_end|>")] == b"<|im_end|>"
    assert spelling[200_000] == b""
    assert spelling.longest == 2  # of the words, not of the special tokens


def test_bytes_of_a_vocabulary_of_words_are_the_words():
    tokenizer = ChatTokenizer.from_file(bundled_checkpoint("digits") / "tokenizer.json")
    spelling = TokenBytes(tokenizer)
    assert spelling[tokenizer.token_id("<|im_start|>")] == b"<|im_start|>"
    assert spelling[0] == tokenizer.decode([0]).encode()
    assert spelling.longest is None  # an unknown word may be of any length


def test_a_slow_reader_finds_pieces_joined_and_in_order():
    async def read() -> list[tuple[int, Event]]:
        mailbox = Mailbox(2)
        first, second = mailbox.listeners()

        def say() -> None:
            first(Begun(1, 0))
            for letter in "abc":
                first(Piece(letter, (Token(ord(letter)),)))
            second(Failure(500, "engine_failed", "it failed"))
            first(Piece("d", (), "stop"))

        thread = threading.Thread(target=say)
        thread.start()
        await asyncio.to_thread(thread.join)
        return await mailbox.take()

    assert asyncio.run(read()) == [
        (0, Begun(1, 0)),
        (0, Piece("abcd", (Token(97), Token(98), Token(99)), "stop")),
        (1, Failure(500, "engine_failed", "it failed")),
    ]


def test_events_for_a_reader_that_has_gone_are_dropped_and_harm_nobody():
    mailboxes: list[Mailbox] = []

    async def leave() -> None:
        mailboxes.append(Mailbox(1))
        mailboxes.append(Mailbox(1))
        mailboxes[0].close()
        (listener,) = mailboxes[0].listeners()
        listener(Begun(0, 0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await mailboxes[0].take()

    asyncio.run(leave())
    (listener,) = mailboxes[1].listeners()
    listener(Begun(0, 0))  # its loop has ended
