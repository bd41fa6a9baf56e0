"""One streamed answer of the chat API, as its chunks arrive."""

import dataclasses
import json
from collections.abc import Mapping
from typing import NoReturn

_DONE = "[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")  # of a delta: all of them are tokens


class AnswerError(ValueError):
    """A chunk that is none of a chat completion."""


class ReportedError(RuntimeError):
    """An error that the server reported within the stream."""


@dataclasses.dataclass
class Answer:
    """What has arrived. Times are the caller's."""

    times: list[float] = dataclasses.field(default_factory=list)  # of each chunk with text
    texts: list[str] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt
    output_tokens: int | None = None
    is_done: bool = False  # `[DONE]` has come

    def take(self, data: str, now: float) -> None:
        """Adds the data of one event, which arrived `now`. Raises AnswerError and ReportedError."""
        if self.is_done:
            raise AnswerError("something came after [DONE]")
        if data.strip() == _DONE:
            self.is_done = True
            return
        chunk = _object(data)
        if error := chunk.get("error"):
            raise ReportedError(error_message(error))
        if isinstance(usage := chunk.get("usage"), Mapping):
            self._take_usage(usage)
        self._take_choice(chunk, now)

    def _take_choice(self, chunk: Mapping[str, object], now: float) -> None:
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            _refuse(chunk)
        if not choices:  # the chunk with the usage
            return
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, Mapping) else None
        if not isinstance(delta, Mapping):
            _refuse(chunk)
        text = "".join(part for key in _TEXTS if isinstance(part := delta.get(key), str))
        if text:
            self.times.append(now)
            self.texts.append(text)
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason

    def _take_usage(self, usage: Mapping[str, object]) -> None:
        self.prompt_tokens = _count(usage.get("prompt_tokens"))
        self.output_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        self.cached_tokens = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None


def error_message(error: object) -> str:
    """The message of an error in OpenAI's form, or of whatever was sent instead."""
    message = error.get("message") if isinstance(error, Mapping) else error
    return message if isinstance(message, str) else json.dumps(error)


def _object(data: str) -> Mapping[str, object]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"a chunk is not JSON: {data[:80]!r}") from error
    if not isinstance(tree, dict):
        raise AnswerError(f"a chunk is no object: {data[:80]!r}")
    return tree


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _refuse(chunk: Mapping[str, object]) -> NoReturn:
    raise AnswerError(f"a chunk is none of a chat completion: {json.dumps(chunk)[:80]}")
