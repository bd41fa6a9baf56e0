"""The body of a request to /v1/chat/completions: OpenAI's fields, and some of other servers' that clients lean on.

Values are taken strictly: no string stands for a number. Fields that are not here are ignored, but for those that
`owl3_jax.serving.parse` refuses because an answer without them would be another answer.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from owl3_jax.serving.generation import TOP_LOGPROBS

TAG = "@"  # begins the names of a union's members, so that the path of an error can leave them out
MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of a message
MAX_STOPS = 16
MAX_ANSWERS = 128


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(_Form):
    """A piece of text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(_Form):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class MediaUrl(_Form):
    """Where an image or a video is: a data: URI, an https: URL or a file: URI, as far as the server allows these."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None  # taken, and without effect: the server says how images are seen


def _by_form(value: object) -> str | None:
    """Which member of a union a value is, by its JSON type."""
    if isinstance(value, str):
        return "@text"
    if isinstance(value, list):
        return "@list"
    return "@object" if isinstance(value, dict | BaseModel) else None


def _form_of(expected: str) -> Discriminator:
    return Discriminator(_by_form, custom_error_type="form", custom_error_message=f"must be {expected}")


_Url = Annotated[
    Annotated[str, Field(min_length=1), Tag("@text")] | Annotated[MediaUrl, Tag("@object")],
    _form_of('a URL or {"url": URL}'),
]
_Frames = Annotated[list[_Url], Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)]


class ImagePart(_Form):
    """An image, or a list of them: the frames of a video."""

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[str, Field(min_length=1), Tag("@text")]
        | Annotated[MediaUrl, Tag("@object")]
        | Annotated[_Frames, Tag("@list")],
        _form_of('a URL, {"url": URL}, or a list of these (frames of a video)'),
    ]


class VideoPart(_Form):
    """A video."""

    type: Literal["video_url"]
    video_url: _Url


def _by_type(*known: str) -> Callable[[object], str | None]:
    """Which of a union's members an object is, by its `type`; None for types that are not `known`."""

    def tag(value: object) -> str | None:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if kind in ("input_text", "output_text"):
            return "@text"
        return f"@{kind}" if isinstance(kind, str) and kind in known else None

    return tag


def _type_of(*known: str) -> Discriminator:
    message = f"must be an object whose type is one of {', '.join(known)}"
    return Discriminator(_by_type(*known), custom_error_type="unsupported", custom_error_message=message)


_Text = Annotated[TextPart, Tag("@text")]
_TextOnly = Annotated[_Text | Annotated[RefusalPart, Tag("@refusal")], _type_of("text", "refusal")]
_Media = Annotated[
    _Text | Annotated[ImagePart, Tag("@image_url")] | Annotated[VideoPart, Tag("@video_url")],
    _type_of("text", "image_url", "video_url"),
]
_TextParts = Annotated[list[_TextOnly], Field(fail_fast=True, max_length=MAX_PARTS)]
_MediaParts = Annotated[list[_Media], Field(fail_fast=True, max_length=MAX_PARTS)]
_TEXT_OR_PARTS = _form_of("a string or a list of parts")


class SystemMessage(_Form):
    """What the assistant is told beforehand."""

    role: Literal["system", "developer"]
    content: Annotated[Annotated[str, Tag("@text")] | Annotated[_TextParts, Tag("@list")], _TEXT_OR_PARTS]


class UserMessage(_Form):
    """A question; media stand where their parts stand."""

    role: Literal["user"]
    content: Annotated[Annotated[str, Tag("@text")] | Annotated[_MediaParts, Tag("@list")], _TEXT_OR_PARTS]


class AssistantMessage(_Form):
    """An answer. The last message may be one: the answer then continues it."""

    role: Literal["assistant"]
    tool_calls: Annotated[list[object], Field(max_length=0)] | None = None  # there are none
    content: Annotated[Annotated[str, Tag("@text")] | Annotated[_TextParts, Tag("@list")], _TEXT_OR_PARTS]


def _by_role(value: object) -> str | None:
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return {"system": "@system", "developer": "@system", "user": "@user", "assistant": "@assistant"}.get(str(role))


_Message = Annotated[
    Annotated[SystemMessage, Tag("@system")]
    | Annotated[UserMessage, Tag("@user")]
    | Annotated[AssistantMessage, Tag("@assistant")],
    Discriminator(
        _by_role,
        custom_error_type="unsupported",
        custom_error_message="must be an object whose role is one of system, developer, user, assistant; there are no tools",
    ),
]
Message = SystemMessage | UserMessage | AssistantMessage

_Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_Stops = Annotated[
    Annotated[_Stop, Tag("@text")] | Annotated[list[_Stop], Field(fail_fast=True, max_length=MAX_STOPS), Tag("@list")],
    _form_of("a string or a list of strings"),
]
_Tokens = Annotated[int, Field(ge=1, lt=2**31)]


class StreamOptions(_Form):
    """What a stream has besides the answer."""

    include_usage: bool | None = None  # a last chunk with the numbers of tokens


class ChatRequest(_Form):
    """A conversation, and how its answer is chosen. What is not given is as the server was started."""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[_Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None  # answers
    max_tokens: _Tokens | None = None  # most tokens of an answer
    max_completion_tokens: _Tokens | None = None  # its newer name
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # fewest tokens of an answer
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # 0: always the most likely token
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # 0 and -1: off
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=10)] | None = None  # 1: off
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None  # without one, answers differ from call to call
    stop: _Stops | None = None  # texts that end an answer and are not part of it
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None  # alternatives to each token
    add_generation_prompt: bool | None = None  # whether the last message is not the assistant's: as it must be here
    continue_final_message: bool | None = None  # whether it is
    priority: Annotated[int, Field(ge=0, le=1000)] | None = None  # larger: behind the others
    user: str | None = None  # taken, and without effect
