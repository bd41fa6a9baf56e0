"""What a request may say, what becomes of it, and how it is told what is wrong."""

import json

import pytest

from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import chat_chunks
from owl3_jax.processing.conversation import as_conversation
from owl3_jax.serving.errors import ApiError
from owl3_jax.serving.parse import Media, Turn, Wanted, parse_request

DEFAULTS = Sampling(max_new_tokens=50, temperature=0.7, top_p=0.8, top_k=100)
HELLO = [{"role": "user", "content": "hello"}]


def parse(messages: object = HELLO, **fields: object) -> Wanted:
    return parse_request(json.dumps({"model": "m", "messages": messages, **fields}).encode(), DEFAULTS)


def refused(messages: object = HELLO, **fields: object) -> ApiError:
    with pytest.raises(ApiError) as raised:
        parse(messages, **fields)
    assert raised.value.status == 400
    assert len(raised.value.message) < 400
    return raised.value


def test_what_is_not_said_is_as_the_server_was_started():
    wanted = parse()
    assert wanted.sampling == DEFAULTS.with_options(seed=wanted.sampling.seed)
    assert wanted.turns == (Turn("user", ("hello",)),)
    assert (wanted.answers, wanted.leaves_length, wanted.is_stream, wanted.include_usage) == (1, True, False, False)
    assert (wanted.presence_penalty, wanted.frequency_penalty, wanted.top_logprobs, wanted.priority) == (0, 0, 0, 0)


def test_nulls_say_nothing():
    names = [
        "temperature",
        "top_p",
        "stop",
        "n",
        "seed",
        "stream",
        "logprobs",
        "max_tokens",
        "tools",
        "response_format",
        "user",
    ]
    wanted = parse(**dict.fromkeys(names))
    assert wanted.sampling == DEFAULTS.with_options(seed=wanted.sampling.seed)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_completion_tokens": 7, "max_tokens": 7}, {"max_new_tokens": 7}),
        ({"min_tokens": 3}, {"min_new_tokens": 3}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"temperature": 1e-6}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"min_p": 0.25}, {"min_p": 0.25}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": [".", "END"]}, {"stop": (".", "END")}),
        ({"stop": []}, {"stop": ()}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**32 - 1}),
        ({"seed": 2**40 + 3}, {"seed": 3}),
        ({"n": 3, "temperature": 0}, {"temperature": 0.0, "top_p": 1.0}),
    ],
)
def test_every_option_of_sampling_is_passed_on(fields, options):
    sampling = parse(**fields).sampling
    assert sampling == DEFAULTS.with_options(**{"seed": sampling.seed} | options)


def test_the_other_fields_are_passed_on():
    wanted = parse(
        n=3,
        presence_penalty=-1.5,
        frequency_penalty=2,
        logprobs=True,
        top_logprobs=20,
        priority=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert (wanted.answers, wanted.presence_penalty, wanted.frequency_penalty) == (3, -1.5, 2.0)
    assert (wanted.top_logprobs, wanted.priority, wanted.is_stream, wanted.include_usage) == (20, 9, True, True)
    assert not parse(max_tokens=1).leaves_length


def test_answers_without_a_seed_differ():
    assert len({parse().sampling.seed for _ in range(5)}) > 1


def test_unknown_fields_are_ignored_and_named_if_they_look_like_names():
    wanted = parse(store=True, metadata={"a": 1}, **{"a prompt, by mistake": 1, "x" * 50: 1})
    assert wanted.ignored == ("store", "metadata")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"logit_bias": {}},
        {"functions": None},
    ],
)
def test_fields_of_what_there_is_not_may_ask_for_nothing(fields):
    assert parse(**fields).ignored == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"function_call": {"name": "f"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"response_format": "text"},
        {"audio": {"voice": "x"}},
        {"modalities": ["text", "audio"]},
        {"logit_bias": {"5": 1}},
        {"best_of": 2},
        {"guided_json": "{}"},
        {"skip_special_tokens": False},
        {"truncate_prompt_tokens": 5},
        {"length_penalty": 0.5},
        {"chat_template": "{{ messages }}"},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"mm_processor_kwargs": {"max_pixels": 5}},
    ],
)
def test_what_would_change_the_answer_and_is_not_there_is_refused(fields):
    error = refused(**fields)
    assert (error.param, error.code) == (*fields, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"min_tokens": 51}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-9}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"priority": -1}, "priority"),
        ({"user": 5}, "user"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_place(fields, param):
    error = refused(**fields)
    assert error.param == param
    assert error.message.startswith(param)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ({}, "messages"),
        (None, "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "hello"}], "messages[0]"),
        ([{"role": "tool", "content": "hello"}], "messages[0]"),
        ([{"role": "function", "content": "hello"}], "messages[0]"),
        ([{"role": ["user"], "content": "hello"}], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], "messages[0].content"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "x" * 10**6}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}], "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].image_url.url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": ""}]}], "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": []}]}], "messages[0].content[0].image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": [5]}]}], "messages[0].content[0].image_url[0]"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": ["a"]}]}], "messages[0].content[0].video_url"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[0].content"),
        ([{"role": "system", "content": [{"type": "image_url", "image_url": "a"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "image_url", "image_url": "a"}]}, *HELLO], "messages[0].content[0]"),
        ([*HELLO, {"role": "system", "content": "be kind"}], "messages"),
    ],
)
def test_a_message_that_is_none_is_refused_with_its_place(messages, param):
    assert refused(messages).param == param


def test_a_missing_field_is_named():
    with pytest.raises(ApiError) as raised:
        parse_request(b'{"messages": [{"role": "user", "content": "a"}]}', DEFAULTS)
    assert (raised.value.param, raised.value.code) == ("model", "missing_field")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "anything": Infinity}',
        b'{"model": "m", "anything": -Infinity}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ApiError) as raised:
        parse_request(body, DEFAULTS)
    assert raised.value.status == 400 and len(raised.value.message) < 400


def test_a_number_beyond_all_floats_is_refused():
    with pytest.raises(ApiError) as raised:
        parse_request(b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', DEFAULTS)
    assert raised.value.param == "temperature"


def test_an_answer_that_is_continued_may_be_asked_for_as_vllm_has_it():
    messages = [*HELLO, {"role": "assistant", "content": "a"}]
    assert parse(messages, add_generation_prompt=False, continue_final_message=True).ignored == ()
    assert parse(HELLO, add_generation_prompt=True, continue_final_message=False).ignored == ()
    assert refused(messages, add_generation_prompt=True).param == "add_generation_prompt"
    assert refused(messages, continue_final_message=False).param == "continue_final_message"


def test_an_assistant_s_tool_calls_are_refused():
    messages = lambda calls: [*HELLO, {"role": "assistant", "content": "a", "tool_calls": calls}]
    assert refused(messages([{"type": "function"}])).param == "messages[1].tool_calls"
    assert parse(messages([])).turns == parse(messages(None)).turns


@pytest.mark.parametrize("part", [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "data:,"}, {}, 5])
def test_a_hundred_thousand_parts_are_refused(part):
    assert refused([{"role": "user", "content": [part] * 100_000}]).param.startswith("messages[0].content")
    assert refused([{"role": "user", "content": "a"}] * 100_000).param == "messages"


def test_roles_parts_and_media_keep_their_places():
    wanted = parse(
        [
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
            {
                "role": "user",
                "name": "someone",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:a", "detail": "high"}},
                    {"type": "text", "text": "or"},
                    {"type": "image_url", "image_url": "data:b"},
                    {"type": "image_url", "image_url": [{"url": "data:c"}, "data:d"]},
                    {"type": "video_url", "video_url": {"url": "data:e"}},
                ],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": "why?"},
        ]
    )
    assert wanted.turns == (
        Turn("system", ("be", "kind")),
        Turn(
            "user",
            (
                Media("image", ("data:a",), "messages[1].content[0].image_url"),
                "or",
                Media("image", ("data:b",), "messages[1].content[2].image_url"),
                Media("video", ("data:c", "data:d"), "messages[1].content[3].image_url", is_list=True),
                Media("video", ("data:e",), "messages[1].content[4].video_url"),
            ),
        ),
        Turn("assistant", ("no",)),
        Turn("user", ("why?",)),
    )


@pytest.mark.parametrize("word", ["<|image|>", "<|video|>", "<|im_end|>"])
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_special_words_of_any_role_stay_text(role, word):
    """As a client spells them, alone and in parts (vllm#10648)."""
    for content in (f"a {word} b", [{"type": "text", "text": f"a {word} b"}]):
        turns = parse([{"role": role, "content": content}, *HELLO]).turns
        messages, images, videos = as_conversation([{"role": turn.role, "content": turn.parts[0]} for turn in turns])
        chunks = chat_chunks(messages, training=False)
        assert (images, videos) == ([], [])
        assert [chunk.kind for chunk in chunks if word in chunk.text and "a " in chunk.text] == ["text"]
        assert not any(chunk.kind == "image" for chunk in chunks)
