"""What a worker says is doubted: a hostile file may have taken it over."""

import asyncio
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from unittest.mock import create_autospec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl3_jax.inference.feature_cache import key_of
from owl3_jax.serving.decode_limits import DecodeLimits, DecodeRefused
from owl3_jax.serving.decode_request import Request
from owl3_jax.serving.decode_wire import WireError, receive, send
from owl3_jax.serving.decoder_process import DecoderDiedError, DecoderProcess, DecoderStartError

LIMITS = DecodeLimits(max_images=3)
SIZE, VOCABULARY = 5, 11
REQUEST = Request([{"role": "user", "content": "Hi"}], [b"source"], 1)
READY = {"image_size": SIZE, "vocab_size": VOCABULARY}


def integers(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def raw(said: bytes, blobs: int = 0) -> bytes:
    return struct.pack("<QQ", len(said), blobs) + said


VIEW = bytes(range(3 * SIZE * SIZE))
PROMPT = ({"images": 1}, [integers(4, 5, 6), integers(1)])


@pytest.fixture
def pair() -> Iterator[tuple[DecoderProcess, socket.socket]]:
    """The server's side of a worker, and the worker's end of the socket."""
    ours, theirs = socket.socketpair()
    child = create_autospec(asyncio.subprocess.Process, instance=True)
    child.pid = os.getpid()
    process = DecoderProcess(child, ours, LIMITS)
    with theirs:
        yield process, theirs
    process.close()


def greet(process: DecoderProcess, worker: socket.socket) -> None:
    send(worker, READY)
    process.greet({"checkpoint": "digits"})
    assert receive(worker, max_said=1 << 16, max_blobs=0).said["checkpoint"] == "digits"


def say(worker: socket.socket, *messages: object) -> None:
    """Messages or raw bytes, after which the worker ends."""
    for message in messages:
        if isinstance(message, bytes):
            worker.sendall(message)
        else:
            send(worker, *message)
    worker.shutdown(socket.SHUT_WR)


def test_an_answer_is_what_the_worker_says(pair):
    process, worker = pair
    greet(process, worker)
    say(worker, PROMPT, ({"view": 0}, [VIEW]))
    prompt = process.decode(REQUEST)
    assert (prompt.input_ids, prompt.image_starts) == ([4, 5, 6], [1])
    (view,) = prompt.views
    assert view.pixels.tobytes() == VIEW and view.pixels.shape == (SIZE, SIZE, 3)
    assert view.key == key_of(view.pixels)
    said, blobs = receive(worker, max_said=1 << 16, max_blobs=1 << 16)
    assert (said, blobs) == ({"messages": REQUEST.messages}, [b"source"])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [b"\x00"],
        [raw(b"not JSON")],
        [raw(b"[" * 60_000)],
        [raw(b"[1]")],
        [raw(b'{"images": 0}')],
        [raw(b'{"sizes": [true]}', 1)],
        [raw(b'{"sizes": [-1, 1]}', 0)],
        [raw(b'{"sizes": [9]}', 8) + b"8 bytes."],
        [raw(b'{"images": ' + b"9" * 5000 + b', "sizes": []}')],
        [struct.pack("<QQ", 1 << 62, 0)],
        [struct.pack("<QQ", 2, 1 << 40) + b"{}"],
        [({"images": 0}, [])],
        [({"images": 0}, [integers(1), b"abc"])],
        [({"images": 1}, [integers(1), integers()])],
        [({"images": 4}, [integers(*range(9)), integers(1, 2, 3, 4)])],  # more than may be
        [({"images": 0}, [integers(VOCABULARY), integers()])],
        [({"images": 0}, [integers(-1), integers()])],
        [({"images": 1}, [integers(1), integers(1)])],
        [({"images": 1}, [integers(1), integers(-1)])],
        [({"images": 2}, [integers(1, 2, 3), integers(1, 1)])],
        [({"images": 2}, [integers(1, 2, 3), integers(2, 1)])],
        [PROMPT],
        [PROMPT, ({"view": 1}, [VIEW])],
        [PROMPT, ({"view": 0}, [VIEW[:-1]])],
        [PROMPT, ({"view": 0}, [VIEW + b"x"])],
        [PROMPT, ({"view": 0}, [VIEW[:40], VIEW[40:]])],
        [PROMPT, ({"view": 0, "key": "another image's"}, [VIEW])],
        [({"refused": "no such code", "message": "x"}, [])],
        [({"refused": ["image_too_large"], "message": "x"}, [])],
        [({"refused": "image_too_large", "message": 1}, [])],
    ],
)
def test_an_answer_of_another_form_ends_the_worker(pair, messages):
    process, worker = pair
    greet(process, worker)
    say(worker, *messages)
    with pytest.raises(DecoderDiedError):
        process.decode(REQUEST)


def test_a_refusal_may_come_in_place_of_a_view_and_is_not_long(pair):
    process, worker = pair
    greet(process, worker)
    say(worker, PROMPT, ({"refused": "unreadable_image", "message": "x" * 50_000},))
    with pytest.raises(DecodeRefused, match=r"^x{1000}$") as caught:
        process.decode(REQUEST)
    assert caught.value.code == "unreadable_image"


@pytest.mark.parametrize(
    ("messages", "words"), [([({"failed": "there is no checkpoint"},)], "there is no checkpoint"), ([], "before it was ready")]
)
def test_a_worker_that_does_not_start_says_why(pair, messages, words):
    process, worker = pair
    say(worker, *messages)
    with pytest.raises(DecoderStartError, match=words):
        process.greet({})


def test_killing_ends_what_waits_for_the_worker(pair):
    process, worker = pair
    greet(process, worker)
    errors = []

    def decode() -> None:
        try:
            process.decode(REQUEST)
        except DecoderDiedError as error:
            errors.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    receive(worker, max_said=1 << 16, max_blobs=1 << 16)  # now it waits for the answer
    process.kill()
    thread.join(60)
    assert len(errors) == 1 and not thread.is_alive()


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
SAID = st.dictionaries(st.text('abé\ud800"', max_size=3), SCALARS | st.lists(SCALARS, max_size=3), max_size=3)


@settings(deadline=None, max_examples=50)
@given(SAID, st.lists(st.binary(max_size=20), max_size=3))
def test_messages_arrive_as_they_were_sent(said, blobs):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, said, blobs)
        ours.shutdown(socket.SHUT_WR)
        received = receive(theirs, max_said=1 << 20, max_blobs=1 << 20)
        assert (received.said, received.blobs) == (said, blobs)
        assert json.dumps(received.said) == json.dumps(said)  # True is not 1
        assert receive(theirs, max_said=0, max_blobs=0) is None


@pytest.mark.parametrize(("max_said", "max_blobs"), [(16, 3), (1 << 16, 2)])
def test_nothing_is_received_beyond_what_may_come(max_said, max_blobs):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, {"a message of more than": "16 bytes"}, [b"abc"])
        with pytest.raises(WireError, match="at most"):
            receive(theirs, max_said=max_said, max_blobs=max_blobs)
