"""The bodies of answers: OpenAI's objects, with the numbers of images beside those of tokens."""

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Of all tokens of an answer, or of those of a chunk."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptDetails(BaseModel):
    """What of the prompt was there already."""

    cached_tokens: int
    images: int  # crops and frames of videos count as images
    cached_images: int


class Usage(BaseModel):
    """Numbers of tokens. Images are no tokens of this model."""

    prompt_tokens: int
    completion_tokens: int  # of all answers
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AnswerMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of the answers to a prompt."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answers to a prompt."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds; fields that are not set are not there."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """What a chunk adds to one of the answers."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """A part of the answers to a prompt."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """What a server answers with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "owl3_jax"
    max_model_len: int | None = None  # tokens of a prompt with its answer


class Models(BaseModel):
    """The names by which this server's model may be called."""

    object: Literal["list"] = "list"
    data: list[Model]
