"""What is known of a request, for its line in the log and for the metrics: numbers and names, never what it says."""

import dataclasses
import re
import time
import uuid

from starlette.requests import HTTPConnection
from starlette.types import Scope

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "owl3_record"  # in an ASGI scope's state


@dataclasses.dataclass
class Record:
    """Of one request. The handlers fill in what they learn."""

    request_id: str  # the client's own, if it gave one
    started: float = dataclasses.field(default_factory=time.perf_counter)
    client: str = ""
    status: int = 0  # 0: none was sent
    code: str = ""  # of an error
    answers: int = 0
    images: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cached_images: int = 0
    is_stream: bool = False
    ignored: tuple[str, ...] = ()
    where: tuple[str, ...] = ()  # lines of code that an error came through

    @property
    def seconds(self) -> float:
        """Since the headers arrived."""
        return time.perf_counter() - self.started


def new_id() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex


def start_record(scope: Scope) -> Record:
    """The record of a request that begins. Its id is the client's `x-request-id` if that is short and plain."""
    connection = HTTPConnection(scope)
    given = connection.headers.get("x-request-id", "")
    record = Record(given if _SANE_ID.fullmatch(given) else f"req-{new_id()}")
    setattr(connection.state, _KEY, record)
    return record


def record_of(connection: HTTPConnection) -> Record:
    """The record of a request under way."""
    record: Record = getattr(connection.state, _KEY)
    return record
