"""A client that knows what it has to get, and says what is wrong with what it gets."""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import aiohttp

from owl3_jax.inference.answers import Answer
from serving_checks.faults import CHAT, Faulty
from serving_checks.questions import Question

KILLED = "decoder_died"  # the code of a request whose worker was killed
_PATIENCE = 300.0  # seconds for one request
_LONG = 256  # tokens that a client does not wait for
_LOGPROB_TOLERANCE = 0.01  # nats: other rows of a batch, other orders of sums

Json = Any  # Any: of an answer, whose form is what is checked


class Outcome(NamedTuple):
    """What came of a request."""

    kind: str
    status: int  # 0: the client left
    problem: str  # empty: none
    seconds: float
    code: str = ""  # of an error


class Client:
    """Speaks to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session, self._url, self._model = session, url, model

    async def ask(self, question: Question, answer: Answer, *, stream: bool) -> Outcome:
        """Asks, and compares the answers with the one that was expected."""
        kind = f"{question.kind}, streamed" if stream else question.kind
        began = time.perf_counter()
        body = json.dumps(question.body(self._model, stream=stream)).encode()
        try:
            status, content = await self._send("POST", CHAT, body, {"Content-Type": "application/json"})
        except (aiohttp.ClientError, TimeoutError) as error:
            return Outcome(kind, 0, f"no answer: {type(error).__name__}", time.perf_counter() - began)
        seconds = time.perf_counter() - began
        if status != 200:
            code = _code(content)
            return Outcome(kind, status, "" if code == KILLED else f"status {status}, {code}", seconds, code)
        return Outcome(kind, status, "; ".join(_differences(question, answer, content, stream=stream)), seconds)

    async def fail(self, faulty: Faulty) -> Outcome:
        """Sends a request that has to be refused."""
        began = time.perf_counter()
        try:
            status, content = await self._send(faulty.method, faulty.path, faulty.body, faulty.headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Outcome("bad", 0, f"{faulty.name}: no answer: {type(error).__name__}", time.perf_counter() - began)
        code = _code(content)
        is_right = (status, code) == (faulty.status, faulty.code) or code == KILLED
        problem = "" if is_right else f"{faulty.name}: {status} {code} in place of {faulty.status} {faulty.code}"
        return Outcome("bad", status, problem, time.perf_counter() - began, code)

    async def leave(self, question: Question, rng: random.Random) -> Outcome:
        """Asks for a long answer, and closes the connection: within the stream, or before anything has come."""
        within = rng.random() < 0.5
        body = {**question.body(self._model, stream=within), "max_tokens": _LONG, "min_tokens": _LONG, "n": 1, "stop": None}
        began, patience = time.perf_counter(), _PATIENCE if within else rng.uniform(0.0, 0.5)
        kind = "left within its stream" if within else "left while waiting"
        try:
            async with asyncio.timeout(patience):
                response = await self._session.post(f"{self._url}{CHAT}", json=body)
                status = response.status
                await response.content.readany()
                response.close()
        except (TimeoutError, aiohttp.ClientError):
            return Outcome(kind, 0, "no answer" if within else "", time.perf_counter() - began)
        problem = "" if status in (200, 400) else f"status {status}"
        return Outcome(kind, status, problem, time.perf_counter() - began)

    async def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        async with (
            asyncio.timeout(_PATIENCE),
            self._session.request(method, f"{self._url}{path}", data=body, headers=headers) as response,
        ):
            return response.status, await response.read()


def _code(content: bytes) -> str:
    """Of an error in OpenAI's form."""
    try:
        error = json.loads(content)["error"]
        return str(error["code"]) if {"message", "type", "param", "code"} == error.keys() else "an error of another form"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no error in JSON"


def _differences(question: Question, answer: Answer, content: bytes, *, stream: bool) -> Iterator[str]:
    try:
        whole = _joined(content) if stream else json.loads(content)
        choices, usage = whole["choices"], whole["usage"]
        if len(choices) != question.n:
            yield f"{len(choices)} answers in place of {question.n}"
        for choice in choices:
            yield from _differences_of_choice(question, answer, choice)
        if usage["completion_tokens"] != question.n * len(answer.ids):
            yield f"{usage['completion_tokens']} tokens in place of {question.n} times {len(answer.ids)}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        yield f"an answer of another form: {error!r}"


def _differences_of_choice(question: Question, answer: Answer, choice: Json) -> Iterator[str]:
    if choice["message"]["content"] != answer.text:
        yield f"{choice['message']['content']!r} in place of {answer.text!r}"
    if choice["finish_reason"] != answer.finish_reason:
        yield f"it ends by {choice['finish_reason']} in place of {answer.finish_reason}"
    if answer.logprobs is not None:
        tokens = choice["logprobs"]["content"]
        if len(tokens) != len(answer.logprobs) or any(
            abs(token["logprob"] - logprob) > _LOGPROB_TOLERANCE for token, logprob in zip(tokens, answer.logprobs, strict=True)
        ):
            yield f"log-probabilities {[token['logprob'] for token in tokens]} in place of {answer.logprobs}"
        if any(len(token["top_logprobs"]) != question.top_logprobs for token in tokens):
            yield "another number of alternatives"


def _joined(content: bytes) -> Json:
    """A stream as the completion that it tells. Raises ValueError, KeyError."""
    *events, done, rest = content.decode().split("\n\n")
    if (done, rest) != ("data: [DONE]", ""):
        raise ValueError("the stream does not end with [DONE]")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")]
    choices: dict[int, Json] = {}
    for chunk in chunks[:-1]:
        for new in chunk["choices"]:
            choice = choices.setdefault(
                new["index"], {"message": {"content": ""}, "finish_reason": None, "logprobs": {"content": []}}
            )
            choice["message"]["content"] += new["delta"].get("content", "")
            choice["finish_reason"] = new["finish_reason"] or choice["finish_reason"]
            choice["logprobs"]["content"] += (new.get("logprobs") or {"content": []})["content"]
    return {"choices": [choices[index] for index in sorted(choices)], "usage": chunks[-1]["usage"]}
