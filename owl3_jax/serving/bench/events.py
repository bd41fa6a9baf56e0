"""Server-sent events, from bytes that may be cut anywhere (WHATWG's HTML standard, section 9.2.6)."""

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = "\ufeff"


class EventError(ValueError):
    """What a server sent is no stream of events."""


class EventDecoder:
    """Takes bytes and gives the data of each event that they complete. An event that is cut off at the end counts as none.

    Fields other than `data` are ignored, as OpenAI's clients ignore them.

    Args:
        limit: most bytes of one event.
    """

    def __init__(self, limit: int = 4 << 20) -> None:
        self._limit, self._line, self._data, self._size = limit, b"", list[str](), 0
        self._ended_with_cr, self._is_first_line = False, True

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that end in `chunk`. Raises EventError for one that is too long or not in UTF-8."""
        if not chunk:
            return []
        whole = chunk.removeprefix(b"\n") if self._ended_with_cr else chunk  # the other half of CR LF
        self._ended_with_cr = chunk.endswith(b"\r")
        *lines, self._line = _LINE_END.split(self._line + whole)
        events = [event for line in lines if (event := self._take(line)) is not None]
        self._require_room(len(self._line))
        return events

    def _take(self, line: bytes) -> str | None:
        """The data of the event that a line ends."""
        text = self._decode(line)
        if not text:
            event = "\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return event
        name, _, value = text.partition(":")
        if name == "data":
            self._require_room(len(line))
            self._size += len(line)
            self._data.append(value.removeprefix(" "))
        return None

    def _decode(self, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise EventError(f"an event is not in UTF-8: {error.reason}") from error
        is_first, self._is_first_line = self._is_first_line, False
        return text.removeprefix(_BOM) if is_first else text

    def _require_room(self, size: int) -> None:
        if self._size + size > self._limit:
            raise EventError(f"an event is longer than {self._limit} bytes")
