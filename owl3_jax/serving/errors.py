"""Errors as OpenAI's API has them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

CLIENT_GONE = 499  # of a client that left before its answer: for logs and metrics, nobody receives it

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: ErrorType
    param: str | None  # the field of the request, as `messages[0].content`
    code: str


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that gets no answer. All that it holds goes to the client: no address, path, key or library's text."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers

    def body(self) -> ErrorBody:
        """What the client gets."""
        return ErrorBody(error=ErrorDetail(message=self.message, type=_type(self.status), param=self.param, code=self.code))


def _type(status: int) -> ErrorType:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """The client's fault, in the field `param`."""
    return ApiError(400, code, message, param=param)


def too_many(message: str, retry_after: float) -> ApiError:
    """Nobody's fault: another attempt in `retry_after` seconds may succeed."""
    return ApiError(429, "rate_limit_exceeded", message, headers={"retry-after": str(max(1, round(retry_after)))})


def unavailable(message: str) -> ApiError:
    """The server takes no requests now."""
    return ApiError(503, "server_unavailable", message, headers={"retry-after": "5"})


def internal() -> ApiError:
    """What a client learns of a mistake in the server: nothing but that there is one."""
    return ApiError(500, "internal_error", "the server made a mistake; its log has the request's id")
