"""The pages for people: `/`, a chat, and `/docs`, the API. They load nothing from elsewhere."""

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import NamedTuple

import jinja2
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from owl3_jax.serving.protocol import ChatRequest

_SCHEMAS = "#/components/schemas/{model}"


class Page(NamedTuple):
    """A page with what a browser may do with it."""

    content: str
    headers: Mapping[str, str]

    def response(self) -> Response:
        """To send."""
        return Response(self.content, headers=dict(self.headers), media_type="text/html")


def page_of(content: str) -> Page:
    """The page, in which only its own scripts and styles run, and which shows media that it made itself."""
    inline = _Inline()
    inline.feed(content)
    policy = {
        "default-src": "'self'",
        "script-src": " ".join(_hashes(inline.scripts)) or "'none'",
        "style-src": " ".join(_hashes(inline.styles)) or "'none'",
        "img-src": "'self' blob: data:",
        "media-src": "'self' blob: data:",
        "connect-src": "'self' blob: data:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }
    return Page(content, headers)


def chat_page() -> Page:
    """The page at `/`."""
    return page_of(_resource("page.html"))


def docs_page(schema: Mapping[str, object]) -> Page:
    """The page at `/docs`: an OpenAPI document as text."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return page_of(template.from_string(_resource("docs.html")).render(schema=schema))


def request_schemas() -> Mapping[str, object]:
    """What an OpenAPI document says of the body of a request, by name."""
    _, definitions = models_json_schema([(ChatRequest, "validation")], ref_template=_SCHEMAS)
    schemas: Mapping[str, object] = definitions["$defs"]
    return schemas


def _resource(name: str) -> str:
    return importlib.resources.files("owl3_jax.serving").joinpath(name).read_text(encoding="utf-8")


def _hashes(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


class _Inline(HTMLParser):
    """The texts of a page's scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The text of these two is in one piece, or in several."""
        self._open = {"script": self.scripts, "style": self.styles}.get(tag)
        if self._open is not None:
            self._open.append("")

    def handle_endtag(self, tag: str) -> None:
        """What follows belongs to neither."""
        self._open = None

    def handle_data(self, data: str) -> None:
        """Collects it."""
        if self._open is not None:
            self._open[-1] += data
