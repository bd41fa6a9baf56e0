"""Around every request: its id, its line in the log, its numbers, and an answer for what nobody foresaw."""

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl3_jax.serving.errors import ApiError, internal
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.logs import lines_of, log_request
from owl3_jax.serving.metrics import Metrics
from owl3_jax.serving.record import Record, start_record

_PROBES = ("/health", "/ready", "/metrics")  # they are asked all the time, so their lines would hide the others
_UNKNOWN = "other"  # the route of a path that is none: its name is the client's


class Observed:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, gate: Gate) -> None:
        self._app, self._metrics, self._gate = app, metrics, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = start_record(scope)
        with self._gate.visit():
            try:
                await self._run(scope, receive, send, record)
            finally:
                self._note(scope, record)

    async def _run(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                record.status = record.status or message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            record.status, record.code = 500, "internal_error"
            record.where = (type(error).__name__, *lines_of(error.__traceback__))
            if has_started:
                raise _BrokenAnswerError from None  # the server closes the connection: the client sees that it is cut off
            await error_response(internal(), record)(scope, receive, send_with_headers)

    def _note(self, scope: Scope, record: Record) -> None:
        route = getattr(scope.get("route"), "path", _UNKNOWN)
        self._metrics.requests.labels(route, str(record.status)).inc()
        if record.code:
            self._metrics.errors.labels(record.code, str(record.status)).inc()
        if record.answers:
            self._count_answers(record)
        if route not in _PROBES or record.status >= 500:
            log_request(record, scope["method"], route)

    def _count_answers(self, record: Record) -> None:
        metrics = self._metrics
        metrics.whole.observe(record.seconds)
        metrics.images.observe(record.images)
        metrics.answer_tokens.observe(record.completion_tokens)
        metrics.prompt_tokens.inc(record.prompt_tokens)
        metrics.generated_tokens.inc(record.completion_tokens)
        metrics.cached_tokens.inc(record.cached_tokens)
        metrics.cached_images.inc(record.cached_images)


class _BrokenAnswerError(Exception):
    """An answer that cannot be ended properly."""


def error_response(error: ApiError, record: Record) -> Response:
    """An error in OpenAI's form; its code goes to the record."""
    record.code = error.code
    body = error.body().model_dump_json()
    return Response(body, error.status, dict(error.headers or {}), media_type="application/json")
