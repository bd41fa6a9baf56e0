"""Events of the engine as OpenAI's objects: one completion, or the chunks of a stream."""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel

from owl3_jax.serving.errors import ApiError, ErrorBody
from owl3_jax.serving.generation import Begun, Event, Failure, Piece, Token
from owl3_jax.serving.replies import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)

DONE = b"data: [DONE]\n\n"
PING = b": the answer is on its way\n\n"  # a comment, which clients skip: it keeps proxies from closing the connection

_LEAST_LOGPROB = -9999.0  # OpenAI's number for a token that cannot be; JSON has no infinity


@runtime_checkable
class Spelling(Protocol):
    """The bytes of tokens."""

    def __getitem__(self, token: int) -> bytes:
        """By id."""


class Asked(NamedTuple):
    """What all objects of one request have in common."""

    id: str
    created: int  # seconds since 1970
    model: str
    answers: int
    prompt_tokens: int
    images: int
    has_logprobs: bool


class Tally:
    """What has come of a request's answers so far."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._unfinished = asked.answers
        self._begun: list[Begun] = []
        self.completion_tokens = 0

    @property
    def is_complete(self) -> bool:
        """Whether all answers have ended."""
        return not self._unfinished

    def add(self, event: Event) -> None:
        """Raises ApiError for a failure."""
        if isinstance(event, Failure):
            raise ApiError(event.status, event.code, event.message)
        if isinstance(event, Begun):
            self._begun.append(event)
        else:
            self.completion_tokens += len(event.tokens)
            self._unfinished -= event.finish_reason is not None

    def usage(self) -> Usage:
        """Several answers share their prompt, so it counts once, and so does what was there of it."""
        details = PromptDetails(
            cached_tokens=min((begun.cached_tokens for begun in self._begun), default=0),
            images=self._asked.images,
            cached_images=min((begun.cached_images for begun in self._begun), default=0),
        )
        return Usage(
            prompt_tokens=self._asked.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self._asked.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=details,
        )


class Whole:
    """Collects the answers to a prompt for one completion."""

    def __init__(self, asked: Asked, tally: Tally, spelling: Spelling) -> None:
        self._asked, self._tally, self._spelling = asked, tally, spelling
        self._texts: list[list[str]] = [[] for _ in range(asked.answers)]
        self._tokens: list[list[Token]] = [[] for _ in range(asked.answers)]
        self._reasons: dict[int, FinishReason] = {}

    def add(self, number: int, event: Event) -> None:
        """Takes an event of one of the answers, after the tally has."""
        if isinstance(event, Piece):
            self._texts[number].append(event.text)
            if self._asked.has_logprobs:
                self._tokens[number] += event.tokens
            if event.finish_reason is not None:
                self._reasons[number] = event.finish_reason

    def completion(self) -> ChatCompletion:
        """All answers, once they have ended."""
        return ChatCompletion(
            id=self._asked.id,
            created=self._asked.created,
            model=self._asked.model,
            choices=[self._choice(number) for number in range(self._asked.answers)],
            usage=self._tally.usage(),
        )

    def _choice(self, number: int) -> Choice:
        return Choice(
            index=number,
            message=AnswerMessage(content="".join(self._texts[number])),
            logprobs=_logprobs(self._tokens[number], self._spelling) if self._asked.has_logprobs else None,
            finish_reason=self._reasons[number],
        )


class Chunks:
    """Writes the answers to a prompt as server-sent events, as they come."""

    def __init__(self, asked: Asked, tally: Tally, spelling: Spelling, *, include_usage: bool) -> None:
        self._asked, self._tally, self._spelling, self._include_usage = asked, tally, spelling, include_usage

    def start(self) -> Iterator[bytes]:
        """Who speaks, for each answer."""
        for number in range(self._asked.answers):
            yield self._chunk([ChunkChoice(index=number, delta=Delta(role="assistant", content=""), finish_reason=None)])

    def add(self, number: int, event: Event) -> Iterator[bytes]:
        """What an event adds to one of the answers."""
        if not isinstance(event, Piece):
            return
        has_logprobs = self._asked.has_logprobs and bool(event.tokens)
        if event.text or has_logprobs:
            logprobs = _logprobs(event.tokens, self._spelling) if has_logprobs else None
            yield self._chunk(
                [ChunkChoice(index=number, delta=Delta(content=event.text), logprobs=logprobs, finish_reason=None)]
            )
        if event.finish_reason is not None:
            yield self._chunk([ChunkChoice(index=number, delta=Delta(), finish_reason=event.finish_reason)])

    def end(self) -> Iterator[bytes]:
        """What follows the answers."""
        if self._include_usage:
            yield self._chunk([], self._tally.usage())
        yield DONE

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._asked.id,
            object="chat.completion.chunk",
            created=self._asked.created,
            model=self._asked.model,
            choices=choices,
            **({"usage": usage} if self._include_usage else {}),
        )
        return _event(chunk)


def error_event(body: ErrorBody) -> bytes:
    """The end of a stream that fails after its status was sent."""
    return _event(body)


def _event(body: BaseModel) -> bytes:
    return b"data: " + body.model_dump_json(exclude_unset=True).encode("utf-8") + b"\n\n"


def _logprobs(tokens: tuple[Token, ...] | list[Token], spelling: Spelling) -> Logprobs:
    return Logprobs(content=[_token_logprob(token, spelling) for token in tokens])


def _token_logprob(token: Token, spelling: Spelling) -> TokenLogprob:
    top = [_top_logprob(other, logprob, spelling) for other, logprob in token.top]
    return TokenLogprob(**_top_logprob(token.id, token.logprob, spelling).model_dump(), top_logprobs=top)


def _top_logprob(token: int, logprob: float | None, spelling: Spelling) -> TopLogprob:
    spelt = spelling[token]
    finite = logprob if logprob is not None and math.isfinite(logprob) else _LEAST_LOGPROB
    return TopLogprob(token=spelt.decode("utf-8", errors="replace"), logprob=finite, bytes=list(spelt))
