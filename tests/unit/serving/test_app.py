"""A server as its clients see it: the `openai` client's calls, and what that client would not send."""

import asyncio
import contextlib
import http.client
import json
import logging
import re
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from owl3_jax.serving.bodies import BodyLimits
from owl3_jax.serving.connections import ConnectionLimits
from owl3_jax.serving.logs import LOGGER, JsonFormatter
from owl3_jax.serving.server import ServerLimits
from tests.fake_serving import MODEL, Running, body, running_server

URI = "data:image/png;base64,{}"
JSON = {"content-type": "application/json"}
_PATIENCE = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=_PATIENCE) as made:
        yield made


def say(content: object, role: str = "user") -> list:
    return [{"role": role, "content": content}]


def ask(client: openai.OpenAI, content: object = "hello", **fields):
    return client.chat.completions.create(model=MODEL, messages=say(content), **fields)


def post(server: Running, content: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", content=content, headers=JSON | headers, timeout=_PATIENCE)


def error_of(response: httpx.Response) -> dict:
    """In OpenAI's form, and with nothing internal in it."""
    assert response.headers["content-type"] == "application/json"
    tree = response.json()
    assert tree.keys() == {"error"} and tree["error"].keys() == {"message", "type", "param", "code"}
    assert "secret" not in response.text and "Traceback" not in response.text and "0xdead" not in response.text
    return tree["error"]


def last_generation(server: Running):
    return server.engine.generations[-1]


# Answers


def test_an_answer_with_its_usage(client, server):
    answer = ask(client)
    assert answer.choices[0].message.content == "hello"
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.role == "assistant"
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 3, "images": 0, "cached_images": 0},
    }


def test_a_stream_has_whole_characters(client):
    chunks = list(ask(client, "über 猫", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "über 猫" and "\N{REPLACEMENT CHARACTER}" not in "".join(texts)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_with_usage_ends_with_it(client):
    *_, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens == 10 and last.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_ends_with_done_and_is_not_stored(server):
    response = post(server, body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.text.endswith("\n\ndata: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in response.text.split("\n") if line)


@pytest.mark.parametrize("stop", [".", ["!", "."], ["l. ", "."]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_stop_strings_end_an_answer_and_are_not_in_it(client, stop, is_stream):
    answer = ask(client, "one. two!", stop=stop, stream=is_stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if is_stream else answer.choices[0].message.content
    assert text == "one"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_has_no_more_tokens_than_are_wanted(client, field):
    answer = ask(client, "hello", **{field: 2})
    assert answer.choices[0].message.content == "he" and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.25}, {"top_p": 0.25}),
        ({"seed": 7}, {"seed": 7}),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_body": {"min_p": 0.5}}, {"min_p": 0.5}),
        ({"extra_body": {"repetition_penalty": 1.25}}, {"repetition_penalty": 1.25}),
        ({"extra_body": {"min_tokens": 2}}, {"min_new_tokens": 2}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"logprobs": True}, {"logprobs": True}),
        ({}, {"n": 1, "num_beams": 1, "temperature": 0.0, "max_new_tokens": 100}),
    ],
)
def test_options_of_sampling_reach_the_engine(client, server, fields, options):
    ask(client, **fields)
    sampling = last_generation(server).sampling
    assert {name: getattr(sampling, name) for name in options} == options


@pytest.mark.parametrize(
    ("fields", "attributes"),
    [
        ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
        ({"logprobs": True, "top_logprobs": 4}, {"top_logprobs": 4}),
        ({"extra_body": {"priority": 3}}, {"priority": 3}),
        ({"user": "someone"}, {"client": "127.0.0.1", "priority": 0}),
    ],
)
def test_other_options_reach_the_engine(client, server, fields, attributes):
    ask(client, **fields)
    generation = last_generation(server)
    assert {name: getattr(generation, name) for name in attributes} == attributes


@pytest.mark.parametrize("fields", [{"response_format": {"type": "text"}}, {"store": True}, {"metadata": {"a": "b"}}])
def test_fields_that_change_nothing_are_taken(client, fields):
    assert ask(client, **fields).choices[0].message.content == "hello"


@pytest.mark.parametrize("is_stream", [False, True])
def test_several_answers_draw_differently(client, server, is_stream):
    before = len(server.engine.generations)
    answer = ask(client, "hello", n=3, temperature=1, stream=is_stream)
    texts = {0: "", 1: "", 2: ""}
    for chunk in answer if is_stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta.content or "") if is_stream else choice.message.content
    assert texts == {0: "hello", 1: "hello", 2: "hello"}
    assert sorted(each.sample for each in server.engine.generations[before:]) == [0, 1, 2]
    if not is_stream:
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 15)


@pytest.mark.parametrize("top", [None, 0, 2])
@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_need_no_alternatives(client, top, is_stream):
    """vllm#4795."""
    answer = ask(client, "hé", logprobs=True, stream=is_stream, **({} if top is None else {"top_logprobs": top}))
    found = [choice.logprobs for chunk in (answer if is_stream else [answer]) for choice in chunk.choices if choice.logprobs]
    tokens = [token for each in found for token in each.content]
    assert [token.bytes for token in tokens] == [[byte] for byte in "hé".encode()]
    assert all(token.logprob == -0.5 and len(token.top_logprobs) == (top or 0) for token in tokens)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_history_and_names_reach_the_decoders(client, server, role):
    client.chat.completions.create(
        model=MODEL,
        messages=[*say("be kind", role), *say("a"), *say("b", "assistant"), {"role": "user", "content": "c", "name": "x"}],
    )
    assert server.decoders.messages[-1] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_images_and_videos_are_fetched_once_and_stand_where_they_stood(client, server):
    before = len(server.fetcher.fetched)
    image = {"type": "image_url", "image_url": {"url": URI.format("a"), "detail": "low"}}
    frames = {"type": "image_url", "image_url": [{"url": URI.format("b")}, {"url": URI.format("a")}]}
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,c"}}
    answer = ask(client, [image, {"type": "text", "text": "?"}, image, frames, video])
    assert answer.choices[0].message.content == "#?#%%"
    assert answer.usage.prompt_tokens_details.model_dump() | {"images": 4, "cached_images": 1} == (
        answer.usage.prompt_tokens_details.model_dump()
    )
    assert server.decoders.messages[-1][0]["content"] == [
        {"type": "image", "image": b"a"},
        {"type": "text", "text": "?"},
        {"type": "image", "image": b"a"},
        {"type": "video", "video": [b"b", b"a"]},
        {"type": "video", "video": b"c"},
    ]
    fetched = server.fetcher.fetched[before:]
    assert sorted(fetched) == sorted(
        [(URI.format("a"), "image"), (URI.format("b"), "image"), ("data:video/mp4;base64,c", "video")]
    )


def test_special_words_in_text_are_escaped(client, server):
    """vllm#10648."""
    ask(client, [{"type": "text", "text": "what is <|image|>?"}, {"type": "image_url", "image_url": {"url": URI.format("a")}}])
    text = server.decoders.messages[-1][0]["content"][0]["text"]
    assert "<|image|>" not in text and text.startswith("what is <|")


def test_an_answer_that_nobody_limited_fits_behind_its_prompt(client, server):
    ask(client, "x" * 950, stop="x")
    assert last_generation(server).sampling.max_new_tokens == 50
    ask(client, "x" * 950, stop="x", max_tokens=80)
    assert last_generation(server).sampling.max_new_tokens == 80


def test_the_asynchronous_client_asks_many_at_once(server):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=_PATIENCE) as client:

            async def ask_one(number: int) -> str:
                stream = await client.chat.completions.create(model=MODEL, messages=say(f"question {number}"), stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(ask_one(number) for number in range(20)))

    assert asyncio.run(ask_all()) == [f"question {number}" for number in range(20)]


def test_the_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == [MODEL, "other-name"]
    assert client.models.retrieve("other-name").max_model_len == 1000
    assert client.chat.completions.create(model="other-name", messages=say("a")).model == MODEL
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("a/b")
    assert raised.value.code == "model_not_found"


# Errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"priority": -5}}, "priority"),
    ],
)
def test_a_request_with_a_fault_is_told_which(client, fields, param):
    with pytest.raises(openai.BadRequestError) as raised:
        ask(client, **fields)
    assert raised.value.param == param and raised.value.type == "invalid_request_error"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-4", messages=say("a"))
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ("!full", 429, "rate_limit_exceeded"),
        ("!large", 400, "context_length_exceeded"),
        ("!fail", 422, "bad_image"),
        ("!crash", 500, "internal_error"),
        ("!decode", 400, "unreadable_image"),
        ("!unavailable", 503, "decoder_unavailable"),
        ([{"type": "image_url", "image_url": {"url": "fake:refuse"}}], 400, "media_refused"),
        ([{"type": "image_url", "image_url": {"url": "fake:crash"}}], 500, "internal_error"),
        ([{"type": "image_url", "image_url": {"url": URI.format("a")}}] * 513, 400, "invalid_value"),
        ([{"type": "image_url", "image_url": [{"url": URI.format("a")}] * 513}], 400, "invalid_value"),
    ],
)
def test_what_fails_before_the_answer_has_a_status(server, content, status, code, is_stream):
    response = post(server, body(content, stream=is_stream))
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert error["type"] == {4: "invalid_request_error", 5: "server_error"}[status // 100] or status == 429
    if status == 429:
        assert response.headers["retry-after"] == "7" and error["type"] == "rate_limit_error"


def test_a_text_that_cannot_fit_is_refused_before_anybody_reads_it():
    """Counting the tokens of a text takes a second for each million of its bytes."""
    with running_server(max_text_bytes=1000) as server:
        for content in ("\u00fc" * 501, [{"type": "text", "text": "a" * 500}, {"type": "text", "text": "b" * 501}]):
            error = error_of(post(server, body(content)))
            assert error["code"] == "context_length_exceeded" and "1000" in error["message"]
        assert server.decoders.messages == []
        assert post(server, body("a" * 500)).status_code == 200


def test_a_failed_medium_is_named_by_its_place(server):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in (URI.format("a"), "fake:refuse", "fake:hold")]
    error = error_of(post(server, body(parts)))
    assert error["param"] == "messages[0].content[1].image_url"
    server.fetcher.held.wait_until_gone()  # the others are given up


def test_what_fails_within_an_answer_ends_it(client, server):
    with pytest.raises(openai.InternalServerError) as whole:
        ask(client, "!break")
    assert whole.value.code == "engine_failed"
    texts = []
    with pytest.raises(openai.APIError, match="the engine has failed"):
        for chunk in ask(client, "!break", stream=True):
            texts.append(chunk.choices[0].delta.content)
    assert "".join(texts) in ("half", "")  # the failure may come with the piece
    assert "[DONE]" not in post(server, body("!break", stream=True)).text


def test_answers_that_do_not_all_fit_in_the_queue_are_all_given_up(server):
    server.engine.room = len(server.engine.generations) + 2
    try:
        response = post(server, body("!hold", n=3))
    finally:
        server.engine.room = 1000
    assert response.status_code == 429
    for generation in server.engine.generations[-2:]:
        assert generation.request_id in server.engine.cancelled


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "model_not_found"),
        ("GET", "/%ff%00", 404, "not_found"),
        ("POST", "/v1/completions", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_in_the_same_form(server, method, path, status, code):
    response = httpx.request(method, f"{server.url}{path}")
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=a"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-encoding": "gzip"},
    ],
)
def test_anything_but_json_is_refused(server, headers):
    response = post(server, body(), **headers)
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")
    assert post(server, body(), **{"content-type": 'application/JSON; charset="UTF-8"'}).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff",
        b'{"model": "echo", "messages": ' + b"[" * 400_000,
        b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
        body(temperature=float("nan")),
        b'{"seed": ' + b"9" * 5000 + b"}",
        body([{"type": "text", "text": "a"}] * 10**5),
        json.dumps({"model": MODEL, "messages": say("a") * 10**5}).encode(),
        body([{"type": "text", "text": {"a": [1] * 10**5}}]),
        b'{"model": "echo", "model": 5, "messages": []}',
        json.dumps({"model": "x" * 10**6, "messages": 5}).encode(),
    ],
)
def test_hostile_bodies_are_the_clients_fault(server, content):
    response = post(server, content)
    assert response.status_code == 400
    assert len(response.content) < 1000
    error_of(response)


def test_a_body_of_very_many_elements_is_refused_before_it_is_read(server):
    assert post(server, body(x=[[]] * 1000)).status_code == 200
    response = post(server, body(x=[[]] * 10**6))
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


# Clients that leave


@contextlib.contextmanager
def leaving(server: Running, content: bytes) -> Iterator[socket.socket]:
    """A connection that has sent a request, and is cut off at the end."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + content)
        yield connection


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("command", ["!hold", "!endless", "!silent"])
def test_a_client_that_leaves_ends_all_its_answers(server, command, is_stream):
    before = len(server.engine.generations)
    with leaving(server, body(command, n=3, stream=is_stream)):
        generations = server.engine.wait_for(before + 3)[before:]
        for generation in generations:
            server.engine.held[generation.request_id].wait_until_there()
    for generation in generations:
        server.engine.held[generation.request_id].wait_until_gone()


def test_a_client_that_leaves_ends_fetching_and_decoding():
    with running_server() as server:
        with leaving(server, body([{"type": "image_url", "image_url": {"url": "fake:hold"}}])):
            server.fetcher.held.wait_until_there()
        server.fetcher.held.wait_until_gone()
        with leaving(server, body("!decoding")):
            server.decoders.held.wait_until_there()
        server.decoders.held.wait_until_gone()
        assert server.engine.generations == []


def test_a_client_that_leaves_within_its_body_leaves_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
    assert post(server, body()).status_code == 200


def test_a_client_that_reads_nothing_is_cut_off():
    limits = ServerLimits(connections=ConnectionLimits(write_seconds=0.5, every=0.05))
    with running_server(limits=limits) as server, leaving(server, body("!endless", stream=True)):
        (generation,) = server.engine.wait_for(1)
        server.engine.held[generation.request_id].wait_until_gone()


def test_a_stream_that_has_nothing_to_say_says_so():
    with (
        running_server(ping=0.05) as server,
        httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", content=body("!silent", stream=True), headers=JSON
        ) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": the answer is on its way"


# Limits


def test_a_body_that_is_too_large_is_refused_before_and_while_it_is_read():
    with running_server(bodies=BodyLimits(bytes_each=1000)) as server:
        assert post(server, body("x" * 500)).status_code == 200
        response = post(server, body("x" * 1000))
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
        chunks = (b" " * 100 for _ in range(50))
        chunked = httpx.post(f"{server.url}/v1/chat/completions", content=chunks, headers=JSON)
        assert chunked.status_code == 413
        assert post(server, body()).status_code == 200


def test_bodies_have_memory_together():
    with running_server(bodies=BodyLimits(bytes_all=2000)) as server:
        with leaving(
            server, body([{"type": "image_url", "image_url": {"url": "fake:hold"}}, {"type": "text", "text": "x" * 800}])
        ):
            server.fetcher.held.wait_until_there()
            response = post(server, body("x" * 300))
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
        server.fetcher.held.wait_until_gone()
        for _ in range(100):  # the memory is given back a moment later
            if post(server, body("x" * 300)).status_code == 200:
                break
        else:
            pytest.fail("the memory is not given back")


def test_one_client_leaves_room_for_the_bodies_of_others():
    limits = BodyLimits(bytes_each=19_200, bytes_all=2000)  # 300 bytes are small
    with running_server(keys=["one", "two"], bodies=limits) as server:
        ask = lambda key, size: post(server, body("x" * size), authorization=f"Bearer {key}").status_code
        with stalled(server, b" " * 900, authorization="Bearer one"):
            while ask("one", 400) == 200:  # until the bytes have arrived
                pass
            assert [ask("one", 150), ask("two", 400), ask("two", 800)] == [200, 200, 200]
            with stalled(server, b" " * 1000, authorization="Bearer two"):
                while ask("two", 400) == 200:
                    pass
                assert ask("two", 100) == 200


@contextlib.contextmanager
def stalled(server: Running, begun: bytes, **headers: str) -> Iterator[http.client.HTTPConnection]:
    """A connection that sends no more than the beginning of a body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (JSON | headers | {"content-length": str(len(begun) + 1)}).items():
        connection.putheader(name, value)
    connection.endheaders(begun)
    yield connection
    connection.close()


def test_a_body_that_does_not_arrive_does_not_delay_the_end():
    with running_server(limits=ServerLimits(drain_seconds=_PATIENCE)) as server, stalled(server, b"{") as connection:
        while post(server, body("hello")).status_code != 200:
            pass
        server.signal()
        response = connection.getresponse()
        assert response.status == 503 and json.loads(response.read())["error"]["code"] == "server_unavailable"
        assert server.ended.wait(_PATIENCE)


def test_a_refused_prompt_is_none_that_the_metrics_count():
    with running_server() as server:
        assert post(server, body("!full")).status_code == 429
        said = httpx.get(f"{server.url}/metrics").text
        assert "owl3_prompt_tokens_total 0.0" in said and "owl3_request_seconds_count 0.0" in said
        assert post(server, body("hello")).status_code == 200
        assert "owl3_prompt_tokens_total 5.0" in httpx.get(f"{server.url}/metrics").text


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_probes_may_ask_for_the_head_alone(server, path):
    response = httpx.head(f"{server.url}{path}")
    assert (response.status_code, response.content) == (200, b"")


def test_a_slow_body_ends_in_time():
    with running_server(bodies=BodyLimits(seconds=0.1)) as server, stalled(server, b"{") as connection:
        response = connection.getresponse()
        assert response.status == 408
        assert json.loads(response.read())["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal"])
def test_slow_headers_end_in_time(sent):
    limits = ServerLimits(connections=ConnectionLimits(head_seconds=0.3, every=0.05))
    with running_server(limits=limits) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(_PATIENCE)
        connection.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1000):
                pass


def test_too_many_connections_make_room_for_others():
    limits = ServerLimits(connections=ConnectionLimits(connections=3, every=0.05))
    with running_server(limits=limits) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE) for _ in range(10)]
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""
        assert httpx.get(f"{server.url}/health").status_code == 200
        for connection in idle:
            connection.close()


def test_too_many_requests_at_once_are_refused():
    with running_server(max_preparing=1) as server:
        with leaving(server, body("!decoding")):
            server.decoders.held.wait_until_there()
            assert post(server, body()).status_code == 429
        server.decoders.held.wait_until_gone()


def test_slow_bodies_keep_nobody_out():
    with running_server(max_preparing=1) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        for connection in slow:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: 100\r\n\r\n{")
        assert post(server, body()).status_code == 200
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("head", [b"X: " + b"a" * 10**6, b"\r\n".join(b"X%d: a" % n for n in range(100_000)), b"\x00: \xff"])
def test_floods_of_headers_are_refused(server, head):
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{server.url}/health").status_code == 200


# Keys, names, pages


def test_with_keys_only_their_holders_may_ask():
    with running_server(keys=["sk-one", "sk-two"]) as server:
        for key in ("sk-wrong", "sk-on", ""):
            with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)):
                openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or "x", max_retries=0).models.list()
        response = post(server, b"not even read")
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert error_of(response)["code"] == "missing_api_key"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-two", max_retries=0)
        assert ask(client).choices[0].message.content == "hello"
        assert last_generation(server).client == "key-2"
        for path in ("/health", "/ready", "/metrics", "/", "/docs", "/openapi.json"):
            assert httpx.get(f"{server.url}{path}").status_code == 200


def test_a_page_of_another_site_cannot_speak_to_a_server_of_this_machine():
    with running_server(allowed_hosts=("localhost", "127.0.0.1", "::1")) as server:
        for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80", "LOCALHOST"):
            assert post(server, body(), host=host).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "[", "127.0.0.1.evil.example:80"):
            response = post(server, body(), host=host)
            assert (response.status_code, error_of(response)["code"]) == (403, "host_not_allowed")


def test_pages_load_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        response = httpx.get(f"{server.url}{path}")
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', response.text)
        assert (path == "/docs") == ("/v1/chat/completions" in response.text and "temperature" in response.text)


def test_the_api_describes_itself(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert reference == "#/components/schemas/ChatRequest" and names <= document["components"]["schemas"].keys()
    assert {"/health", "/ready", "/metrics", "/v1/models"} <= document["paths"].keys()


# Whoever runs it


def test_ready_says_whether_requests_are_taken(server):
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.engine.is_ready = False
    try:
        response = httpx.get(f"{server.url}/ready")
        assert response.status_code == 503 and error_of(response)["code"] == "server_unavailable"
        assert post(server, body()).status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
    finally:
        server.engine.is_ready = True


def test_the_metrics_count_what_happened():
    with running_server() as server:
        post(server, body([{"type": "image_url", "image_url": {"url": URI.format("a")}}, {"type": "text", "text": "abc"}]))
        post(server, body(n=0))
        httpx.get(f"{server.url}/secret-path")
        text = httpx.get(f"{server.url}/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['owl3_requests_total{route="/v1/chat/completions",status="200"}'] == "1.0"
    assert lines['owl3_requests_total{route="other",status="404"}'] == "1.0"
    assert lines['owl3_errors_total{code="invalid_value",status="400"}'] == "1.0"
    assert (lines["owl3_requests_waiting"], lines["owl3_requests_running"]) == ("1.0", "2.0")
    assert [lines[f'owl3_image_pages{{state="{state}"}}'] for state in ("free", "idle", "used", "shared")] == [
        "3.0",
        "4.0",
        "5.0",
        "6.0",
    ]
    assert lines["owl3_image_pages_evicted_total"] == "7.0" and lines['owl3_text_pages{state="used"}'] == "10.0"
    assert lines["owl3_images_encoded_total"] == "11.0" and lines["owl3_images_cached_total"] == "1.0"
    assert (lines["owl3_prompt_tokens_total"], lines["owl3_generated_tokens_total"]) == ("4.0", "4.0")
    for name in ("owl3_queue_seconds", "owl3_time_to_first_token_seconds", "owl3_request_seconds", "owl3_request_images"):
        assert lines[f"{name}_count"] == "1.0"
    assert lines["owl3_decoders_waiting"] == "1.0" and lines["owl3_ready"] == "1.0"
    assert "secret-path" not in text


def test_logs_have_ids_and_numbers_but_no_words_and_no_keys(caplog):
    with caplog.at_level(logging.INFO, LOGGER.name), running_server(keys=["sk-secret"]) as server:
        headers = {"authorization": "Bearer sk-secret"}
        post(server, body("private words"), **headers, **{"x-request-id": "mine-1"})
        post(server, body("!crash"), **headers)
        post(server, body("private words", temperature="private"), authorization="Bearer sk-wrong")
        httpx.get(f"{server.url}/private-path?key=sk-secret")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == LOGGER.name]
    assert not re.search("private|sk-|0xdead", "".join(lines))
    requests = [line for line in map(json.loads, lines) if line["event"] == "request"]
    assert [(line["route"], line["status"]) for line in requests] == [
        ("/v1/chat/completions", 200),
        ("/v1/chat/completions", 500),
        ("/v1/chat/completions", 401),
        ("other", 404),
    ]
    assert (
        requests[0] | {"request_id": "mine-1", "client": "key-1", "prompt_tokens": 13, "completion_tokens": 13} == requests[0]
    )
    assert requests[1]["where"][0] == "RuntimeError" and requests[1]["level"] == "error"


@pytest.mark.parametrize(("given", "is_kept"), [("mine-1.a:b_c", True), ("x" * 129, False), ("a b", False), ("", False)])
def test_a_request_has_an_id(server, given, is_kept):
    first, second = (post(server, body(), **{"x-request-id": given}).headers["x-request-id"] for _ in range(2))
    assert (first == given) == is_kept
    assert is_kept or first != second


def test_two_clients_with_the_same_id_do_not_end_each_others_answers(server):
    ids = {"x-request-id": "same"}
    before = len(server.engine.generations)
    with leaving(server, body("!hold")):
        post(server, body(), **ids)
        first, second = server.engine.wait_for(before + 2)[before:]
    assert first.request_id != second.request_id


# The end


def await_refusal(server: Running) -> None:
    deadline = time.monotonic() + _PATIENCE
    while httpx.get(f"{server.url}/ready").status_code == 200:
        assert time.monotonic() < deadline


def test_a_signal_lets_answers_finish_and_refuses_new_ones():
    with running_server() as server:
        with leaving(server, body("!hold", stream=True)) as connection:
            (generation,) = server.engine.wait_for(1)
            held = server.engine.held[generation.request_id]
            held.wait_until_there()
            server.signal()
            await_refusal(server)
            response = post(server, body())
            assert response.status_code == 503 and "retry-after" in response.headers
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert not server.ended.is_set() and not held.is_gone.is_set()
            server.engine.closed.set()  # so that the answer ends with an event
            held.is_gone.set()
            text = b"".join(iter(lambda: connection.recv(1000), b""))
            assert b"begun" in text and b"shutting_down" in text
        assert server.ended.wait(_PATIENCE)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port))


def test_answers_that_take_too_long_are_ended_with_the_server():
    with running_server(limits=ServerLimits(drain_seconds=0.2)) as server:
        with leaving(server, body("!hold")) as connection:
            server.engine.wait_for(1)
            server.signal()
            assert b" 503 " in connection.recv(1000)
        assert server.ended.wait(_PATIENCE)


def test_a_second_signal_ends_at_once():
    with running_server() as server:
        with leaving(server, body("!hold")) as connection:
            server.engine.wait_for(1)
            server.signal()
            await_refusal(server)
            server.signal()
            assert b" 503 " in connection.recv(1000)
        assert server.ended.wait(_PATIENCE)


def test_an_idle_server_ends_at_once():
    with running_server() as server:
        httpx.get(f"{server.url}/health")
        server.signal()
        assert server.ended.wait(_PATIENCE)
