"""Samples on HTML pages: their text as the model sees it, loss in green, their images in their places."""

import base64
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from owl3_jax.data.readers.records import Problem
from owl3_jax.processing.chat import IMAGE
from owl3_jax.processing.tokenizer import ChatTokenizer

_MOST_THUMBS, _THUMB = 16, 112  # of a sample; pixels
_MOST_LETTERS = 4000  # of a sample


class Piece(NamedTuple):
    """A stretch of a sample's text, or one of its images."""

    text: str
    has_loss: bool = False
    thumb: str = ""  # a data: URI


class Card(NamedTuple):
    """One sample."""

    name: str
    problems: Sequence[Problem]
    size: str
    pieces: Sequence[Piece]


def render(template: str, **values: object) -> str:
    """The HTML of a template, given by its path in the package; all may use the macros of `data/cards.html`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("owl3_jax", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def pieces_of(
    tokens: Int[np.ndarray, " T"],
    labels: Bool[np.ndarray, " T"],
    views: Iterable[UInt8[np.ndarray, "S S 3"]],
    tokenizer: ChatTokenizer,
) -> Iterator[Piece]:
    """A sample's text and images in their order; what is very long is cut."""
    thumbs = itertools.islice(views, _MOST_THUMBS)
    letters = 0
    for text, has_loss in _spans(tokens, labels, tokenizer):
        for number, part in enumerate(text.split(IMAGE)):
            if number:
                view = next(thumbs, None)
                yield Piece(IMAGE) if view is None else Piece("", thumb=_thumb(view))
            yield Piece(part[: max(0, _MOST_LETTERS - letters)], has_loss)
            letters += len(part)
        if letters > _MOST_LETTERS:
            yield Piece(" ... (more)")
            return


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as the address of an image on a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _spans(
    tokens: Int[np.ndarray, " T"], labels: Bool[np.ndarray, " T"], tokenizer: ChatTokenizer
) -> Iterator[tuple[str, bool]]:
    """The text, cut where loss begins and ends."""
    start = 0
    for has_loss, group in itertools.groupby(labels.tolist()):
        stop = start + len(list(group))
        yield tokenizer.decode(tokens[start:stop], skip_special_tokens=False), has_loss
        start = stop


def _thumb(view: UInt8[np.ndarray, "S S 3"]) -> str:
    drawing = io.BytesIO()
    Image.fromarray(view).resize((_THUMB, _THUMB), Image.Resampling.BICUBIC).save(drawing, "jpeg", quality=80)
    return data_uri("image/jpeg", drawing.getvalue())
