"""What a server and its decoding workers say to each other: JSON and raw bytes over a socket. No jax: workers import this.

A message is two numbers (bytes of the JSON, bytes of the rest), an object in JSON, and the bytes of its `blobs` one after the
other. Neither side unpickles anything, and both say how much they are ready to receive: a worker that a hostile file has taken
over can say what it likes.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

Blob = bytes | bytearray | memoryview

_NUMBERS = struct.Struct("<QQ")
_SIZES = "sizes"  # in the object: of each blob


class WireError(Exception):
    """The other side has ended within a message, or has said what it must not say."""


class Received(NamedTuple):
    """One message."""

    said: dict[str, object]
    blobs: list[bytearray]


def send(connection: socket.socket, said: dict[str, object], blobs: Sequence[Blob] = ()) -> None:
    """Sends one message. Raises OSError when the other side has ended."""
    views = [memoryview(blob).cast("B") for blob in blobs]
    head = json.dumps({**said, _SIZES: [view.nbytes for view in views]}).encode()
    connection.sendall(_NUMBERS.pack(len(head), sum(view.nbytes for view in views)) + head)
    for view in views:
        connection.sendall(view)


def receive(connection: socket.socket, *, max_said: int, max_blobs: int) -> Received | None:
    """The next message; None when the other side has ended before it.

    Args:
        connection: a blocking one.
        max_said: bytes of JSON.
        max_blobs: bytes of all blobs.

    Raises WireError, and OSError.
    """
    first = _read(connection, 1, may_end=True)
    if not first:
        return None
    said_bytes, blob_bytes = _NUMBERS.unpack(first + _read(connection, _NUMBERS.size - 1))
    if said_bytes > max_said or blob_bytes > max_blobs:
        raise WireError(f"a message of {said_bytes} + {blob_bytes} bytes, where at most {max_said} + {max_blobs} may come")
    said = _parse(_read(connection, said_bytes))
    sizes = said.pop(_SIZES, None)
    if not is_list_of_counts(sizes) or sum(sizes) != blob_bytes:
        raise WireError("the sizes of the blobs do not add up")
    return Received(said, [_read(connection, size) for size in sizes])


def is_list_of_counts(value: object) -> TypeGuard[list[int]]:
    """Whether this is a list of integers of at least 0."""
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _parse(text: bytearray) -> dict[str, object]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError("a message that is not JSON") from error
    if not isinstance(said, dict):
        raise WireError("a message that is not an object")
    return said


def _read(connection: socket.socket, size: int, *, may_end: bool = False) -> bytearray:
    """Exactly so many bytes, or none if the other side has ended and may."""
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        count = connection.recv_into(rest)
        if not count:
            if may_end:
                return bytearray()
            raise WireError("it ended within a message")
        rest = rest[count:]
    return content
