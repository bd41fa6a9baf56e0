"""The HTTP side of a server: OpenAI's endpoints, those of whoever runs it, and pages for people."""

import time
from collections.abc import Callable, Mapping

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from owl3_jax.serving.answers import Spelling
from owl3_jax.serving.api_settings import ApiSettings
from owl3_jax.serving.auth import ApiKeys
from owl3_jax.serving.bodies import Bodies
from owl3_jax.serving.chat import Chat, require_model
from owl3_jax.serving.errors import ApiError, ErrorBody, unavailable
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.generation import ServingEngine
from owl3_jax.serving.hosts import check_host
from owl3_jax.serving.metrics import CONTENT_TYPE, Metrics, Numbers
from owl3_jax.serving.observe import Observed, error_response
from owl3_jax.serving.preparing import Decoders, Fetcher, Preparer
from owl3_jax.serving.record import record_of
from owl3_jax.serving.replies import ChatCompletion, Model, Models
from owl3_jax.serving.site import chat_page, docs_page, request_schemas

_TITLE = "owl3 serve"
_ABOUT = (
    "mPLUG-Owl3 by OpenAI's API. Errors have OpenAI's form; where the server was started with API keys, /v1 needs one: "
    "Authorization: Bearer KEY."
)
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
}
_FAILURES: dict[int | str, dict[str, object]] = {
    "4XX": {"model": ErrorBody, "description": "The request has a fault, or there are too many"},
    "5XX": {"model": ErrorBody, "description": "The server has"},
}


def make_app(
    engine: ServingEngine,
    fetcher: Fetcher,
    decoders: Decoders,
    spelling: Spelling,
    settings: ApiSettings,
    keys: ApiKeys,
    gate: Gate,
    parts: Mapping[str, Numbers] | None = None,
) -> FastAPI:
    """An ASGI application. It is made in the event loop that runs it.

    Args:
        engine: it answers. Whoever started it also closes it.
        fetcher: where media come from.
        decoders: what makes prompts of them.
        spelling: the bytes of tokens, for log-probabilities.
        settings: names, defaults and limits.
        keys: who may use /v1.
        gate: by which the server is drained.
        parts: other things that count, for /metrics, by name.
    """
    metrics = Metrics(engine, parts or {})
    preparer = Preparer(fetcher, decoders, settings.max_media, settings.max_text_bytes)
    chat = Chat(engine, preparer, spelling, settings, keys, gate, metrics, Bodies(settings.bodies))

    def check_name(request: Request) -> None:
        check_host(request.headers.get("host", ""), settings.allowed_hosts)

    app = FastAPI(
        title=_TITLE,
        description=_ABOUT,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # they would lead where the request's own headers say
        dependencies=[Depends(check_name)],
    )
    app.add_middleware(Observed, metrics=metrics, gate=gate)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    _add_openai_endpoints(app, chat)
    _add_probes(app, engine, gate, metrics)
    _add_pages(app)
    return app


def _add_openai_endpoints(app: FastAPI, chat: Chat) -> None:
    started = int(time.time())
    settings = chat.settings

    def describe(name: str) -> Model:
        return Model(id=name, created=started, max_model_len=settings.positions)

    @app.post(
        "/v1/chat/completions",
        summary="Answers a conversation with images and videos",
        openapi_extra=_REQUEST,
        responses={200: {"model": ChatCompletion}, **_FAILURES},
    )
    async def complete(request: Request) -> Response:
        return await chat.respond(request)

    @app.get("/v1/models", summary="The names of the model", response_model=Models, responses=_FAILURES)
    async def models(request: Request) -> Response:
        chat.keys.client_of(request.headers)
        return JSONResponse(Models(data=[describe(name) for name in settings.models]).model_dump())

    @app.get("/v1/models/{name:path}", summary="One of them", response_model=Model, responses=_FAILURES)
    async def model(request: Request, name: str) -> Response:
        chat.keys.client_of(request.headers)
        require_model(name, settings)
        return JSONResponse(describe(name).model_dump())


def _add_probes(app: FastAPI, engine: ServingEngine, gate: Gate, metrics: Metrics) -> None:
    @app.get("/health", summary="200 as soon as the server runs")
    @app.head("/health", include_in_schema=False)  # load balancers ask so
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="200 while requests are taken, else 503", responses=_FAILURES)
    @app.head("/ready", include_in_schema=False)
    async def ready() -> Response:
        gate.require_open()
        if not engine.is_ready:
            raise unavailable("the model is not ready yet")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Numbers for Prometheus")
    async def numbers() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    """The documents are made once all endpoints are there."""
    app.openapi = _openapi(app)  # type: ignore[method-assign]  # as FastAPI's documentation says
    page, docs = chat_page(), docs_page(app.openapi())

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def chat() -> Response:
        return page.response()

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return docs.response()


def _openapi(app: FastAPI) -> Callable[[], dict[str, object]]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    document["components"]["schemas"] |= request_schemas()
    return lambda: document


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, record_of(request))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    code, message = {
        404: ("not_found", "there is no such path; /docs lists those of this server"),
        405: ("method_not_allowed", "this path takes other methods"),
    }.get(error.status_code, ("invalid_request", "the request has a fault"))
    return error_response(ApiError(error.status_code, code, message, headers=error.headers), record_of(request))
