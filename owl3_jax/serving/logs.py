"""Logs as JSON, a line each, on standard error. They hold no prompts, answers, keys or paths that clients sent."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from types import TracebackType

from owl3_jax.serving.record import Record

LOGGER = logging.getLogger("owl3.serve")

_FIELDS = "fields"  # attribute of a log record that holds what its line has besides the message


class JsonFormatter(logging.Formatter):
    """One line for each record. Of an exception it shows the class and the lines of code: its text may quote a client's."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0]:
            line |= {"error": record.exc_info[0].__name__, "where": lines_of(record.exc_info[2])}
        return json.dumps(line, ensure_ascii=True, default=repr)


def use_json_logs(level: int = logging.INFO) -> None:
    """Makes this process write its logs as JSON, uvicorn's and those of other libraries too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    LOGGER.setLevel(level)
    logging.captureWarnings(True)


def log(event: str, level: int = logging.INFO, **fields: object) -> None:
    """Writes a line."""
    LOGGER.log(level, event, extra={_FIELDS: fields})


def log_request(record: Record, method: str, route: str) -> None:
    """The line of a request that has ended. `route` is the server's own name of the path."""
    level = logging.ERROR if record.status >= 500 and record.status != 503 else logging.INFO
    log("request", level, method=method, route=route, **_present(record))


def lines_of(trace: TracebackType | None) -> list[str]:
    """Where an error came through, the innermost line last."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def _present(record: Record) -> Mapping[str, object]:
    """What a record holds, without what is zero or empty."""
    named = {name: value for name, value in vars(record).items() if name != "started" and value}
    return {**named, "seconds": round(record.seconds, 4)}
