"""Two servers behind one service, as docs/launch/serve.yaml has them: whoever asks, and whichever of them is replaced."""

import contextlib
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator, Sequence

import openai
import pytest
from serving_checks.live import LiveServer, live_server
from serving_checks.questions import data_uri, draw_picture

FLAGS = ("--checkpoint", "digits", "--dtype", "float32", "--sampling", "greedy", "--no-warm-up", "--drain-seconds", 300)
PICTURES = [draw_picture(random.Random(seed)) for seed in range(3)]
PATIENCE = 300.0  # seconds; machines stall


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[LiveServer]]:
    folder = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(live_server(folder / f"{number}.log", *FLAGS)) for number in range(2)]


def is_ready(server: LiveServer) -> bool:
    """What the readiness probe asks."""
    try:
        return urllib.request.urlopen(f"{server.url}/ready", timeout=PATIENCE).status == 200
    except OSError:  # also of a status that is none
        return False


def client_of(replicas: Sequence[LiveServer]) -> openai.OpenAI:
    """A client whose service sends it to the first replica that is ready."""
    chosen = next(server for server in replicas if is_ready(server))
    return openai.OpenAI(base_url=f"{chosen.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def ask(client: openai.OpenAI, tokens: int, *, stream: bool = False) -> object:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(each.content)}} for each in PICTURES]
    content = [*parts, {"type": "text", "text": "Which digit is red?"}]
    return client.chat.completions.create(
        model="digits",
        messages=[{"role": "user", "content": content}],
        stream=stream,
        max_tokens=tokens,
        extra_body={"min_tokens": tokens},
    )


def test_one_is_replaced_while_the_other_answers(replicas: Sequence[LiveServer]) -> None:
    """The answer under way is finished, whoever comes later is sent to the other one, and nobody notices."""
    first, second = replicas
    expected = ask(client_of([second]), 40).choices[0].message.content
    images = second.numbers()["owl3_images_encoded_total"]

    with client_of(replicas) as client:
        pieces = iter(ask(client, 40, stream=True))
        said = [next(pieces).choices[0].delta.content or "", next(pieces).choices[0].delta.content or ""]
        os.kill(first.pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while is_ready(first):
            assert time.monotonic() < deadline
        with client_of(replicas) as other:  # the second one, which still has the pictures
            answer = ask(other, 40)
        said += [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(said) == answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens_details.cached_images == 3
    assert second.numbers()["owl3_images_encoded_total"] == images
    with pytest.raises(OSError):  # refused, or cut off where the end comes between asking and answering
        while time.monotonic() < deadline:
            urllib.request.urlopen(f"{first.url}/health", timeout=PATIENCE).close()
            time.sleep(0.05)
