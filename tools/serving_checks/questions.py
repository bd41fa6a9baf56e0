"""Requests of every kind about pictures of digits, each in the form of the API and in that of the library."""

import base64
import dataclasses
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import av
import numpy as np
from PIL import Image

from owl3_jax.data.digits.images import COLOURS, digit_image, encoded_image
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import escape_placeholders

Kind = Literal["text", "one image", "images", "follow-up", "frames", "video", "n", "logprobs", "stop"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_IMAGES = 8  # of one message
_SHARED = 40  # pictures that all requests show again and again
_TEXTS = (
    "How many images?",
    "Describe the images.",
    "Describe the image.",
    "In Image 1, which digit?",
    "What does <|image|> mean, and <|im_end|>?",
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file."""

    content: bytes


@dataclasses.dataclass(frozen=True)
class Frames:
    """PNG files that are a video."""

    contents: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Clip:
    """An MP4 file."""

    content: bytes


Part = str | Picture | Frames | Clip
Turn = tuple[Literal["user", "assistant"], tuple[Part, ...]]


@dataclasses.dataclass(frozen=True)
class Question:
    """A request whose answer is known, once somebody has computed it."""

    kind: Kind
    turns: tuple[Turn, ...]
    max_tokens: int
    n: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no log-probabilities

    @property
    def sampling(self) -> Sampling:
        """For the batch engine; the answers of `n` are all the same one, since it is greedy."""
        return Sampling(max_new_tokens=self.max_tokens, stop=self.stop, logprobs=self.top_logprobs is not None)

    def messages(self) -> list[Mapping[str, object]]:
        """As `Processor` takes them; text that spells a placeholder is none."""
        return [{"role": role, "content": list(map(_for_library, parts))} for role, parts in self.turns]

    def body(self, model: str, *, stream: bool) -> Mapping[str, object]:
        """As the API takes it."""
        fields: dict[str, object] = {"model": model, "temperature": 0, "max_tokens": self.max_tokens, "stream": stream}
        if self.n > 1:
            fields["n"] = self.n
        if self.stop:
            fields["stop"] = list(self.stop)
        if self.top_logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if stream:
            fields["stream_options"] = {"include_usage": True}
        messages = [{"role": role, "content": list(map(_for_api, parts))} for role, parts in self.turns]
        return {**fields, "messages": messages}


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A medium within a request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw_questions(rng: random.Random, count: int) -> list[Question]:
    """`count` of them, of all kinds in turn; many show pictures that others show too."""
    pictures = [draw_picture(rng) for _ in range(_SHARED)]
    clips = [Clip(_mp4(rng, frames)) for frames in (1, 3, 6)]
    return [_draw(rng, KINDS[number % len(KINDS)], pictures, clips) for number in range(count)]


def _draw(rng: random.Random, kind: Kind, shared: Sequence[Picture], clips: Sequence[Clip]) -> Question:
    def some(least: int, most: int) -> list[Part]:
        count = rng.randint(least, most)
        return [rng.choice(shared) if rng.random() < 0.8 else draw_picture(rng) for _ in range(count)]

    media: dict[Kind, list[Part]] = {
        "text": [],
        "one image": some(1, 1),
        "frames": [Frames(tuple(_content(part) for part in some(1, MAX_IMAGES)))],
        "video": [rng.choice(clips)],
    }
    shown = media.get(kind, some(0 if kind in ("n", "stop") else 1, MAX_IMAGES))
    turns = list(_history(rng, some)) if kind == "follow-up" else []
    turns.append(("user", (*shown, _text(rng))))
    options: dict[str, object] = {"max_tokens": rng.choice((1, 4, 16))}
    if kind == "n":
        options["n"] = rng.randint(2, 3)
    if kind == "stop":
        options["stop"] = tuple(rng.sample([*COLOURS, "Image", "a", " "], 2))
    if kind == "logprobs":
        options["top_logprobs"] = rng.randint(0, 3)
    return Question(kind, tuple(turns), **options)  # type: ignore[arg-type]


def _history(rng: random.Random, some: object) -> Iterator[Turn]:
    assert callable(some)
    for _ in range(rng.randint(1, 3)):
        yield "user", (*some(0, 3), _text(rng))
        yield "assistant", (f"{rng.choice(list(COLOURS))} {rng.randint(0, 9)}",)


def _text(rng: random.Random) -> str:
    return rng.choice((f"Which digit is {rng.choice(list(COLOURS))}?", *_TEXTS))


def draw_picture(rng: random.Random) -> Picture:
    """A digit in a colour."""
    return Picture(encoded_image(digit_image(rng.randrange(1797), rng.choice(list(COLOURS)))))


def _content(part: Part) -> bytes:
    assert isinstance(part, Picture)
    return part.content


def _mp4(rng: random.Random, frames: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=1, options={"threads": "1"})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1)
        for _ in range(frames):
            picture = Image.open(io.BytesIO(draw_picture(rng).content)).resize((64, 64))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _for_library(part: Part) -> Mapping[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": escape_placeholders(part)}
    if isinstance(part, Picture):
        return {"type": "image", "image": part.content}
    return {"type": "video", "video": list(part.contents) if isinstance(part, Frames) else part.content}


def _for_api(part: Part) -> Mapping[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": {"url": data_uri(part.content)}}
    if isinstance(part, Frames):
        return {"type": "image_url", "image_url": [{"url": data_uri(content)} for content in part.contents]}
    return {"type": "video_url", "video_url": {"url": data_uri(part.content, "video/mp4")}}
