"""One request to a server, whatever becomes of it: every failure is a kind of error in the record, none is raised."""

import dataclasses
import io
import json
import time
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp

from owl3_jax.serving.bench.answer import Answer, AnswerError, ReportedError, error_message
from owl3_jax.serving.bench.events import EventDecoder, EventError

_LARGEST_REPLY = 64 << 10  # bytes that are read of an error
_LARGEST_METRICS = 8 << 20
_LONGEST_MESSAGE = 300  # characters of an error that are kept
_SHORT_TIMEOUT = 30.0  # seconds for what needs no model
# Servers close idle connections after 5 s (uvicorn) or later; a request that meets the closing of its connection fails.
_KEEP_ALIVE = 3.0


class ServerError(RuntimeError):
    """A server that cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a server is, and how long it may take.

    Args:
        url: with or without `/v1` at its end.
        api_key: sent as a bearer token.
        timeout: seconds for a whole answer.
        connect_timeout: seconds for a connection.
    """

    url: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    timeout: float = 600.0
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no URL of a server: give one such as http://127.0.0.1:8000")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("the URL must have no user name, query or fragment; a key is given by --api-key")

    @property
    def root(self) -> str:
        """The URL below which `/v1` and `/metrics` are."""
        return self.url.rstrip("/").removesuffix("/v1")


@dataclasses.dataclass
class Reply:
    """What became of a request. Times are of `time.perf_counter`."""

    sent: float
    ended: float = 0.0
    status: int | None = None
    answer: Answer = dataclasses.field(default_factory=Answer)
    error: str | None = None  # its kind
    message: str = ""

    def fail(self, kind: str, message: object) -> None:
        """Notes the kind of error, and a printable message."""
        text = "".join(character if character.isprintable() else " " for character in str(message))
        self.error, self.message = kind, text[:_LONGEST_MESSAGE]


class Client:
    """Talks to one server. An async context manager.

    Raises nothing for failed requests; only the questions about the server itself raise ServerError.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._headers = {"Accept-Encoding": "identity"}  # a compressed stream would come in lumps
        if endpoint.api_key:
            self._headers["Authorization"] = f"Bearer {endpoint.api_key}"

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout, sock_connect=self._endpoint.connect_timeout),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def first_model(self) -> str:
        """The first model that the server names. Raises ServerError."""
        url = f"{self._endpoint.root}/v1/models"
        try:
            async with self._session.get(url, timeout=_short_timeout(), allow_redirects=False) as response:
                content = await _read(response, _LARGEST_METRICS)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerError(f"{url} cannot be reached: {error or type(error).__name__}") from error
        if response.status != 200:
            hint = "; give --api-key" if response.status in (401, 403) else ""
            raise ServerError(f"{url} answered {response.status}{hint}")
        try:
            name = json.loads(content)["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(f"{url} names no model; give --model") from error
        return str(name)

    async def metrics(self) -> str | None:
        """What the server's /metrics says; None where there is none."""
        try:
            async with self._session.get(
                f"{self._endpoint.root}/metrics", timeout=_short_timeout(), allow_redirects=False
            ) as response:
                content = await _read(response, _LARGEST_METRICS)
        except (aiohttp.ClientError, TimeoutError):
            return None
        return content.decode("utf-8", "replace") if response.status == 200 else None

    async def ask(self, body: bytes) -> Reply:
        """Sends a chat request and reads the stream of its answer to the end."""
        reply = Reply(sent=time.perf_counter())
        try:
            await self._post(body, reply)
        except aiohttp.ConnectionTimeoutError as error:
            reply.fail("connection", error)
        except TimeoutError:
            reply.fail("timeout", f"no end within {self._endpoint.timeout:g} s")
        except aiohttp.ClientConnectorError as error:
            reply.fail("connection", error)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            reply.fail("disconnected", error or type(error).__name__)
        except (EventError, AnswerError, aiohttp.ClientError) as error:
            reply.fail("protocol", error)
        except ReportedError as error:
            reply.fail("server_error", error)
        reply.ended = time.perf_counter()
        return reply

    async def _post(self, body: bytes, reply: Reply) -> None:
        async with self._session.post(
            f"{self._endpoint.root}/v1/chat/completions",
            data=io.BytesIO(body),  # aiohttp sends bytes of this size in one piece, during which nothing else is done
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
            allow_redirects=False,
        ) as response:
            reply.status = response.status
            if response.status != 200:
                reply.fail(f"http_{response.status}", _message_of(await _read(response, _LARGEST_REPLY)))
            elif response.content_type != "text/event-stream":
                reply.fail("protocol", f"the answer is {response.content_type} in place of text/event-stream")
            else:
                await _read_stream(response, reply)


async def _read_stream(response: aiohttp.ClientResponse, reply: Reply) -> None:
    decoder = EventDecoder()
    async for chunk in response.content.iter_any():
        now = time.perf_counter()
        for data in decoder.feed(chunk):
            reply.answer.take(data, now)
    if not reply.answer.is_done:
        reply.fail("cut_off", "the stream ended without [DONE]")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The beginning of a reply."""
    content = b""
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) >= limit:
            response.close()
            break
    return content[:limit]


def _message_of(content: bytes) -> str:
    """What the body of an error says, in OpenAI's form or another."""
    text = content.decode("utf-8", "replace")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return error_message(tree.get("error", tree)) if isinstance(tree, dict) else text


def _short_timeout() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=_SHORT_TIMEOUT)
