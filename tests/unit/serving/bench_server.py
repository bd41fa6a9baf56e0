"""A server that speaks as much of OpenAI's API as a load generator hears, and answers as a test wants."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from aiohttp import web
from aiohttp.test_utils import TestServer

Reply = Callable[[web.Request, dict], Awaitable[web.StreamResponse]]

DONE = b"data: [DONE]\n\n"


def chunk(text: str | None = None, finish_reason: str | None = None) -> bytes:
    """One chunk of an answer, as an event."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


def usage(prompt: int = 100, output: int = 3, cached: int = 0) -> bytes:
    """The chunk with the usage, as an event."""
    counted = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return event({"choices": [], "usage": counted})


def event(tree: object) -> bytes:
    return b"data: " + json.dumps(tree, ensure_ascii=False).encode() + b"\n\n"


async def stream(request: web.Request, parts: Sequence[bytes]) -> web.StreamResponse:
    """An answer in the given parts, each sent by itself."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
        await asyncio.sleep(0)
    await response.write_eof()
    return response


async def answer_shortly(request: web.Request, body: dict) -> web.StreamResponse:
    """Three tokens."""
    return await stream(request, [chunk("One"), chunk(" two"), chunk(" three.", "stop"), usage(), DONE])


class FakeServer:
    """What it was asked, and how many requests it had at once."""

    def __init__(self, reply: Reply = answer_shortly, models: object = None) -> None:
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.now, self.most, self.metrics_read = 0, 0, 0
        self._reply = reply
        self._models = {"data": [{"id": "owl"}]} if models is None else models

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/metrics", self._metrics)
        return app

    @property
    def pictures(self) -> list[list[str]]:
        """The pictures of each request, as URIs."""
        return [pictures_of(body) for body in self.bodies]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(body := await request.json())
        self.headers.append(dict(request.headers))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._reply(request, body)
        finally:
            self.now -= 1

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(self._models)

    async def _metrics(self, request: web.Request) -> web.Response:
        self.metrics_read += 1
        return web.Response(text=f"reads_total {self.metrics_read}\n")


def pictures_of(body: dict) -> list[str]:
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"]


def question_of(body: dict) -> str:
    """The last one."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


@contextlib.asynccontextmanager
async def serving(server: FakeServer) -> AsyncIterator[str]:
    """Its URL, while it serves in this event loop."""
    async with TestServer(server.app()) as served:
        yield str(served.make_url("/")).rstrip("/")


@contextlib.contextmanager
def serving_beside(server: FakeServer) -> Iterator[str]:
    """Its URL, while it serves in a thread."""
    loop, ready, url = asyncio.new_event_loop(), threading.Event(), list[str]()

    async def serve() -> None:
        async with serving(server) as address:
            url.append(address)
            ready.set()
            await ended.wait()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield url[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
