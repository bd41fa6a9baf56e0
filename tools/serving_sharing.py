"""Measures what many users of the same pictures cost a server, and how long a short request waits beside a long one.

    python tools/serving_sharing.py http://127.0.0.1:8000 --images 64 --clients 8 --long 128

Clients ask different questions about the same pictures at once, each with the pictures in an order and at places of its own.
Then each asks again alone, and one asks a further question. In the end short requests with one new picture come while a long
one is being read. The server should be idle, and must know the pictures from nobody else; its /metrics say how many images the
vision tower has read. Exits with 1 if an answer together is not the one alone, or a picture was read twice.
"""

import concurrent.futures
import dataclasses
import io
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import openai
import tyro
from PIL import Image
from serving_checks.live import LiveServer
from serving_checks.questions import data_uri

from owl3_jax.host.text_table import format_table

_PATIENCE = 3600.0  # seconds for an answer
_WORDS = ("Look at this.", "Here is one.", "And one more:", "What about it?")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Whom to ask, and how much."""

    url: tyro.conf.Positional[str]  # the server's, such as http://127.0.0.1:8000
    images: int = 64  # that all clients show
    clients: int = 8
    long: int = 128  # images of the request that short ones come beside; 0: none
    short: int = 5  # requests with one image that come while it is read
    max_tokens: int = 8
    api_key: str = "none"
    seed: int = 0
    json: Path | None = None  # where the figures go


@dataclasses.dataclass(frozen=True)
class Said:
    """An answer, and the seconds until its first token."""

    text: str
    first_token: float


class Asker:
    """Asks one server."""

    def __init__(self, url: str, api_key: str, max_tokens: int) -> None:
        self.server = LiveServer(url)
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=_PATIENCE)
        self._model = self._client.models.list().data[0].id
        self._max_tokens = max_tokens

    def ask(self, messages: Sequence[object]) -> Said:
        """Streams an answer."""
        began, first, said = time.perf_counter(), 0.0, list[str]()
        options = {"model": self._model, "temperature": 0, "max_tokens": self._max_tokens, "stream": True}
        # The client's types know neither messages as plain JSON nor options by name.
        chunks = self._client.chat.completions.create(messages=messages, **options)  # type: ignore[call-overload]
        for chunk in chunks:  # the first one has no text, and comes before it
            if new := "".join(choice.delta.content or "" for choice in chunk.choices):
                first = first or time.perf_counter() - began
                said.append(new)
        if not said:
            sys.exit("error: an answer without text says nothing about when its first token came; give more --max-tokens")
        return Said("".join(said), first)

    def beside(self, messages: Sequence[object], shorts: Sequence[Sequence[object]]) -> list[float]:
        """Seconds until the first tokens of short requests, which come one after the other while a long one is being read."""
        before = self.encoded()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            long = pool.submit(self.ask, messages)
            while self.encoded() < before + 2:
                time.sleep(0.05)
            found = [self.ask(short).first_token for short in shorts]
            if long.done():
                sys.exit("error: the long request was answered before the short ones; give more --long images")
            long.result()
        return found

    def encoded(self) -> int:
        """Images that the vision tower has read."""
        return int(self.server.numbers()["owl3_images_encoded_total"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and prints a table."""
    flags = tyro.cli(Flags, args=argv, description=__doc__)
    rng, asker = random.Random(flags.seed), Asker(flags.url, flags.api_key, flags.max_tokens)
    pictures = [_draw_picture(rng) for _ in range(flags.images + flags.long + flags.short)]
    shared, long = pictures[: flags.images], pictures[flags.images : flags.images + flags.long]
    before = asker.encoded()
    turns = [_turn(rng, shared, client) for client in range(flags.clients)]
    with concurrent.futures.ThreadPoolExecutor(flags.clients) as pool:
        together = list(pool.map(asker.ask, [[turn] for turn in turns]))
    encoded, pages = asker.encoded() - before, asker.server.numbers()["owl3_image_pages/idle"]
    alone = [asker.ask([turn]) for turn in turns]
    history = [turns[0], {"role": "assistant", "content": together[0].text}, {"role": "user", "content": "Which one is odd?"}]
    follow_up = asker.ask(history)
    figures: dict[str, object] = {
        "clients": flags.clients,
        "images that each shows": flags.images,
        "images that the vision tower read": encoded,
        "image pages in memory": int(pages),
        "answers that differ from those alone": sum(a.text != b.text for a, b in zip(together, alone, strict=True)),
        "first token of the first turn, seconds": round(together[0].first_token, 3),
        "first token of a second turn, seconds": round(follow_up.first_token, 3),
        "times sooner": round(together[0].first_token / follow_up.first_token, 1),
    }
    if flags.long:
        shorts = [[_turn(rng, [picture], 0)] for picture in pictures[flags.images + flags.long :]]
        waited = sorted(asker.beside([_turn(rng, long, 0)], shorts))
        figures["first token of one image while so many are read"] = flags.long
        figures["median, seconds"] = round(waited[len(waited) // 2], 2)
        figures["longest, seconds"] = round(waited[-1], 2)
    print("\n".join(format_table([[name, str(value)] for name, value in figures.items()])))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")
    if encoded != flags.images or figures["answers that differ from those alone"]:
        sys.exit(1)


def _draw_picture(rng: random.Random) -> bytes:
    """A PNG of 8 x 8 squares in random colours, like no other."""
    file, colours = io.BytesIO(), Image.frombytes("RGB", (8, 8), rng.randbytes(3 * 8 * 8))
    colours.resize((224, 224), Image.Resampling.NEAREST).save(file, "png")
    return file.getvalue()


def _turn(rng: random.Random, pictures: Sequence[bytes], client: int) -> dict[str, object]:
    """A question about pictures in an order of its own, with words between them."""
    parts: list[dict[str, object]] = [{"type": "text", "text": f"I am number {client}. " * (client + 1)}]
    for picture in rng.sample(pictures, len(pictures)):
        parts.append({"type": "image_url", "image_url": {"url": data_uri(picture)}})
        if rng.random() < 0.5:
            parts.append({"type": "text", "text": rng.choice(_WORDS)})
    return {"role": "user", "content": [*parts, {"type": "text", "text": "Which of them is the largest?"}]}


if __name__ == "__main__":
    main()
