"""A server with OpenAI's API and the page of `owl3 serve`, whose answers a test writes while they are read."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import queue
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import MappingProxyType

MODEL = "owl3-digits"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclasses.dataclass
class Stream:
    """An answer under way."""

    pieces: queue.Queue[bytes | None] = dataclasses.field(default_factory=queue.Queue)  # None ends it
    left: threading.Event = dataclasses.field(default_factory=threading.Event)  # set when the client goes

    def send(self, *pieces: bytes) -> None:
        """Writes bytes, each piece by itself."""
        for piece in pieces:
            self.pieces.put(piece)

    def say(self, text: str, finish: str | None = None) -> None:
        """Writes an event with more of the answer."""
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        self.send(f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode())

    def end(self, *, prompt: int = 0, cached: int = 0, completion: int = 0) -> None:
        """Writes the last words of a whole answer: why it ended, its usage, and the mark of the end."""
        self.say("", finish="stop")
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
        self.send(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode(), b"data: [DONE]\n\n")
        self.cut()

    def cut(self) -> None:
        """Closes the connection."""
        self.pieces.put(None)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An error in place of an answer."""

    status: int
    message: str
    headers: Mapping[str, str]


class FakeOpenAI(ThreadingHTTPServer):
    """Answers requests with what `stream` and `refuse` queued, in their order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.ready = True
        self.key = ""  # if there is one, requests need it
        self.requests: list[dict] = []  # bodies of those for an answer
        self.replies: queue.Queue[Stream | Refusal] = queue.Queue()
        self.page = resources.files("owl3_jax.serving").joinpath("page.html").read_bytes()

    def stream(self) -> Stream:
        """The next request gets this answer."""
        reply = Stream()
        self.replies.put(reply)
        return reply

    def refuse(self, status: int, message: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The next request gets this error."""
        self.replies.put(Refusal(status, message, headers))

    def policy(self) -> str:
        """The strictest Content-Security-Policy under which the page may work."""
        script, style = (_hash(self.page, name) for name in (b"script", b"style"))
        return (
            f"default-src 'self'; script-src '{script}'; style-src '{style}'; img-src 'self' blob: data:; "
            "media-src blob: data:; connect-src 'self'"
        )


def _hash(page: bytes, name: bytes) -> str:
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (name, name), page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeOpenAI

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""

    def do_GET(self) -> None:
        if self.path == "/":
            self._reply(200, self.server.page, {"Content-Type": "text/html", "Content-Security-Policy": self.server.policy()})
        elif self.path == "/ready":
            self._reply(200 if self.server.ready else 503, b"{}")
        elif self._is_allowed():
            self._reply(200, json.dumps({"data": [{"id": MODEL}]}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_allowed():
            return
        self.server.requests.append(json.loads(body))
        reply = self.server.replies.get(timeout=60)
        if isinstance(reply, Refusal):
            self._refuse(reply)
        else:
            self._stream(reply)

    def _is_allowed(self) -> bool:
        allowed = not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}"
        if not allowed:
            self._refuse(Refusal(401, "Incorrect API key provided.", NO_HEADERS))
        return allowed

    def _refuse(self, refusal: Refusal) -> None:
        error = {"message": refusal.message, "type": "invalid_request_error", "code": None}
        self._reply(refusal.status, json.dumps({"error": error}).encode(), refusal.headers)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, reply: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        threading.Thread(target=self._watch, args=[reply], daemon=True).start()
        while (piece := reply.pieces.get()) is not None and not reply.left.is_set():
            self.wfile.write(piece)

    def _watch(self, reply: Stream) -> None:
        with contextlib.suppress(OSError):
            self.connection.recv(1)  # the client sends nothing more: this returns when it goes
        reply.left.set()
        reply.cut()


@contextlib.contextmanager
def serving() -> Iterator[FakeOpenAI]:
    """The server on a free port of the loopback interface."""
    with FakeOpenAI() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
