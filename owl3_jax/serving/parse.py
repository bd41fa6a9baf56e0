"""The body of a request, checked, as what the decoders and the engine need."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import pydantic
import pydantic_core

from owl3_jax.config import ConfigError
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import escape_placeholders
from owl3_jax.serving.errors import ApiError, invalid
from owl3_jax.serving.protocol import (
    TAG,
    ChatRequest,
    ImagePart,
    MediaUrl,
    Message,
    RefusalPart,
    TextPart,
    UserMessage,
    VideoPart,
)

MediaKind = Literal["image", "video"]

_LONGEST_MESSAGE = 300  # characters of an error; a client's value in it may have millions
_LONGEST_NAME = 40
_MOST_IGNORED = 10
_MOST_ELEMENTS = 500_000  # of a body: parsing more would stop the server for everybody
_SMALLEST_TEMPERATURE = 1e-3  # below it the likeliest token is all but certain: greedy


class Media(NamedTuple):
    """An image or a video at its place in a message."""

    kind: MediaKind
    urls: tuple[str, ...]  # of a video several if they are its frames
    param: str  # its path in the request
    is_list: bool = False  # whether these are images that are the frames of a video


class Turn(NamedTuple):
    """A message: its text, escaped, in parts, and the media between them."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Media, ...]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a request asks for."""

    model: str
    turns: tuple[Turn, ...]
    sampling: Sampling  # of each answer: `n` is 1
    answers: int
    leaves_length: bool  # whether the client said nothing of the number of tokens
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    priority: int
    is_stream: bool
    include_usage: bool
    ignored: tuple[str, ...]  # fields that have no effect here: their names


def parse_request(body: bytes | bytearray, defaults: Sampling) -> Wanted:
    """What the body of a request asks for.

    Args:
        body: JSON.
        defaults: of what the request does not say.

    Raises ApiError.
    """
    tree = _json(body)
    if not isinstance(tree, dict):
        raise invalid(None, "the body must be a JSON object")
    _refuse_unsupported(tree)
    try:
        request = ChatRequest.model_validate(tree)
    except pydantic.ValidationError as error:
        raise _readable(error) from None
    _require_possible(request)
    sampling = _sampling(request, defaults)
    return Wanted(
        model=request.model,
        turns=tuple(_turn(message, f"messages[{index}]") for index, message in enumerate(request.messages)),
        sampling=sampling,
        answers=request.n or 1,
        leaves_length=request.max_tokens is None and request.max_completion_tokens is None,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        top_logprobs=request.top_logprobs or 0,
        priority=request.priority or 0,
        is_stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        ignored=tuple(_ignored(tree)),
    )


def _json(body: bytes | bytearray) -> object:
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_ELEMENTS:  # commas within texts, too
        raise ApiError(413, "request_too_large", f"the body has more than the {_MOST_ELEMENTS} elements that this server takes")
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:  # too deep is a ValueError of this parser
        raise invalid(None, _shortened(f"the body is not JSON: {error}"), code="invalid_json") from None


def _is_empty(value: object) -> bool:
    return not value


# Fields without which an answer would be another one, and the values that ask for nothing.
_UNSUPPORTED: Mapping[str, Callable[[object], bool]] = {
    "tools": _is_empty,
    "functions": _is_empty,
    "tool_choice": lambda value: value in (None, "none", "auto"),
    "function_call": lambda value: value in (None, "none", "auto"),
    "audio": _is_empty,
    "modalities": lambda value: value in (None, ["text"]),
    "response_format": lambda value: value is None or value == {"type": "text"},
    "logit_bias": _is_empty,
    "prediction": _is_empty,
    "web_search_options": lambda value: value is None,
    "best_of": lambda value: value in (None, 1),
    "use_beam_search": _is_empty,
    "guided_json": _is_empty,
    "guided_regex": _is_empty,
    "guided_choice": _is_empty,
    "guided_grammar": _is_empty,
    "structured_outputs": _is_empty,
    "stop_token_ids": _is_empty,
    "ignore_eos": _is_empty,
    "bad_words": _is_empty,
    "prompt_logprobs": lambda value: value is None,
    "echo": _is_empty,
    "allowed_token_ids": _is_empty,
    "include_stop_str_in_output": _is_empty,
    "skip_special_tokens": lambda value: value in (None, True),
    "truncate_prompt_tokens": lambda value: value is None,
    "length_penalty": lambda value: value in (None, 1),
    "chat_template": _is_empty,
    "chat_template_kwargs": _is_empty,
    "documents": _is_empty,
    "mm_processor_kwargs": _is_empty,
}


def _refuse_unsupported(tree: Mapping[str, object]) -> None:
    for name, asks_nothing in _UNSUPPORTED.items():
        if name in tree and not asks_nothing(tree[name]):
            raise _unsupported(name, f"{name} is not supported by this server: leave it out")


def _unsupported(name: str, message: str) -> ApiError:
    return invalid(name, message, code="unsupported_parameter")


def _ignored(tree: Mapping[str, object]) -> Iterator[str]:
    """Names for the log, if they look like names: anything else may be what nobody should log."""
    unknown = (name for name in tree if name not in ChatRequest.model_fields and name not in _UNSUPPORTED)
    for name, _ in zip(unknown, range(_MOST_IGNORED), strict=False):
        if name.isascii() and name.isidentifier() and len(name) <= _LONGEST_NAME:
            yield name


def _readable(error: pydantic.ValidationError) -> ApiError:
    """The first thing that is wrong, and where. The value itself stays out of it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _path(first["loc"])
    return invalid(
        param, _shortened(f"{param}: {first['msg']}"), "missing_field" if first["type"] == "missing" else "invalid_value"
    )


def _path(place: Sequence[str | int]) -> str:
    """`messages[0].content[1].type` of what pydantic has as a tuple; the names of unions' members are left out."""
    names = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in place if not str(key).startswith(TAG)]
    return "".join(names).removeprefix(".")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _require_possible(request: ChatRequest) -> None:
    """Raises ApiError for fields that contradict each other."""
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options needs stream to be true")
    if None not in (request.max_tokens, request.max_completion_tokens) and request.max_tokens != request.max_completion_tokens:
        raise invalid("max_tokens", "max_tokens and max_completion_tokens are two names of one number: give one of them")
    if request.messages[-1].role in ("system", "developer"):
        raise invalid("messages", "the last message must be the user's, or one of the assistant's that the answer continues")
    continues = request.messages[-1].role == "assistant"
    if request.continue_final_message not in (None, continues):
        raise _unsupported("continue_final_message", "only a last message of the assistant's is continued, and always")
    if request.add_generation_prompt not in (None, not continues):
        raise _unsupported("add_generation_prompt", "only a last message of the assistant's goes without a prompt, and always")


def _sampling(request: ChatRequest, defaults: Sampling) -> Sampling:
    seed = secrets.randbits(32) if request.seed is None else request.seed % 2**32
    given: dict[str, int | float | None] = {
        "max_new_tokens": request.max_completion_tokens or request.max_tokens,
        "min_new_tokens": request.min_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
    }
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    options |= {"seed": seed, "logprobs": bool(request.logprobs)}
    if request.top_k == -1:
        options["top_k"] = 0
    if (request.temperature is not None and request.temperature < _SMALLEST_TEMPERATURE) or request.top_p == 0:
        options |= {"temperature": 0.0, "top_p": 1.0}
    if request.stop is not None:
        options["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    limit = options.get("max_new_tokens", defaults.max_new_tokens)
    if request.min_tokens is not None and isinstance(limit, int) and request.min_tokens > limit:
        raise invalid("min_tokens", f"min_tokens {request.min_tokens} must not exceed the {limit} tokens of an answer")
    if request.min_tokens is None:
        options["min_new_tokens"] = min(defaults.min_new_tokens, int(str(limit)))
    try:
        return defaults.with_options(**options, n=1, num_beams=1)
    except ConfigError as error:
        raise invalid(None, _shortened(str(error))) from None


def _turn(message: Message, place: str) -> Turn:
    if isinstance(message, UserMessage):
        return Turn("user", tuple(_user_parts(message, place)))
    parts = (message.content,) if isinstance(message.content, str) else tuple(map(_text_of, message.content))
    if message.role == "assistant":  # nothing is looked for in it
        return Turn("assistant", parts)
    return Turn("system", tuple(map(escape_placeholders, parts)))


def _text_of(part: TextPart | RefusalPart) -> str:
    return part.refusal if isinstance(part, RefusalPart) else part.text


def _user_parts(message: UserMessage, place: str) -> Iterator[str | Media]:
    if isinstance(message.content, str):
        yield escape_placeholders(message.content)
        return
    for index, part in enumerate(message.content):
        if isinstance(part, TextPart):
            yield escape_placeholders(part.text)
        else:
            yield _media(part, f"{place}.content[{index}].{part.type}")


def _media(part: ImagePart | VideoPart, place: str) -> Media:
    if isinstance(part, VideoPart):
        return Media("video", (_url(part.video_url),), place)
    if isinstance(part.image_url, list):
        return Media("video", tuple(map(_url, part.image_url)), place, is_list=True)
    return Media("image", (_url(part.image_url),), place)


def _url(given: str | MediaUrl) -> str:
    return given if isinstance(given, str) else given.url
