"""What a check found, as one HTML page that needs no other file: numbers, histograms, problems, and samples as the model sees
them, the worst first."""

import base64
import collections
import io
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from owl3_jax.config import DataConfig, JsonTree
from owl3_jax.data.check.record import Checked, Checker
from owl3_jax.data.check.report import Found
from owl3_jax.data.readers.records import BadRecord
from owl3_jax.processing.chat import IMAGE
from owl3_jax.processing.processor import Prepared, Processor

_OF_EACH_KIND, _LONGEST, _CHOSEN = 4, 4, 8  # samples on the page
_MOST_PROBLEMS = 1000  # on the page; the JSON has all
_MOST_THUMBS, _THUMB = 16, 112  # of a sample; pixels
_MOST_LETTERS = 4000  # of a sample
_BAR, _LIMIT = "#4477aa", "#cc2b2b"


class Piece(NamedTuple):
    """A stretch of a sample's text, or one of its images."""

    text: str
    has_loss: bool = False
    thumb: str = ""  # a data: URI


class Card(NamedTuple):
    """One sample."""

    name: str
    problems: Sequence[Found]
    size: str
    pieces: Sequence[Piece]


def render_page(
    report: JsonTree, checkers: Mapping[str, Checker], checked: Mapping[str, Sequence[Checked]], problems: Sequence[Found]
) -> str:
    """The page's HTML. `checkers` and `checked` are those of each source, by its path."""
    config = next(iter(checkers.values())).config
    read = [each for of_source in checked.values() for each in of_source if each.tokens]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return template.from_string(resources.files("owl3_jax.data.check").joinpath("page.html").read_text()).render(
        report=report,
        config=config,
        problems=problems[:_MOST_PROBLEMS],
        more_problems=max(0, len(problems) - _MOST_PROBLEMS),
        histograms=_histograms(read, config),
        cards=list(_cards(checkers, checked, problems)),
    )


def _histograms(read: Sequence[Checked], config: DataConfig) -> str:
    """Tokens and images a sample, as the data: URI of one picture."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = (
        ("tokens", config.tokens_per_row, [x.tokens for x in read]),
        ("images", config.images_per_row, [x.images for x in read]),
    )
    for axes, (unit, limit, values) in zip(figure.subplots(1, 2), drawn, strict=True):
        most = max([*values, 1])
        bins = np.linspace(0, most, 41) if most > 40 else np.arange(most + 2) - 0.5
        axes.hist(values, bins=bins, color=_BAR)
        if limit <= 1.2 * most:
            axes.axvline(limit, color=_LIMIT, linewidth=1.5, label=f"a row: {limit}")
            axes.legend(frameon=False)
        axes.set_xlabel(f"{unit} a sample")
        axes.set_ylabel("samples")
        axes.spines[["top", "right"]].set_visible(False)
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=110)
    return _data_uri("image/png", drawing.getvalue())


def _cards(
    checkers: Mapping[str, Checker], checked: Mapping[str, Sequence[Checked]], problems: Sequence[Found]
) -> Iterator[Card]:
    of_record = collections.defaultdict(list)
    for problem in problems:
        of_record[problem.source, problem.record].append(problem)
    for path, index in _chosen(checked, problems, of_record):
        each, checker = checked[path][index], checkers[path]
        size = f"{each.tokens} tokens, {each.images} images, {each.target_tokens} tokens with loss" if each.tokens else ""
        yield Card(f"record {index} of {path}", of_record[path, index], size, list(_pieces(checker, index)))


def _chosen(
    checked: Mapping[str, Sequence[Checked]], problems: Sequence[Found], of_record: Mapping[tuple[str, int], Sequence[Found]]
) -> list[tuple[str, int]]:
    """Which records are shown: those with most problems, some of each kind of problem, the longest ones, some others."""
    kinds: collections.Counter[str] = collections.Counter()
    bad = []
    for problem in sorted(problems, key=lambda problem: -len(of_record[problem.source, problem.record])):
        kinds[problem.kind] += 1
        if kinds[problem.kind] <= _OF_EACH_KIND:
            bad.append((problem.source, problem.record))
    everything = [(path, index) for path, each in checked.items() for index in range(len(each))]
    good = [place for place in everything if place not in of_record]
    longest = sorted(good, key=lambda place: -checked[place[0]][place[1]].tokens)[:_LONGEST]
    others = random.Random(0).sample(good, min(_CHOSEN, len(good)))
    return list(dict.fromkeys([*bad, *longest, *others]))


def _pieces(checker: Checker, index: int) -> Iterator[Piece]:
    try:
        prepared = checker.prepared(checker.records[index])
    except (BadRecord, ValueError):  # the problems beside it say why
        return
    views = itertools.islice(prepared.views(), _MOST_THUMBS)
    letters = 0
    for text, has_loss in _spans(prepared, checker.processor):
        for number, part in enumerate(text.split(IMAGE)):
            if number:
                view = next(views, None)
                yield Piece(IMAGE) if view is None else Piece("", thumb=_thumb(view))
            yield Piece(part[: max(0, _MOST_LETTERS - letters)], has_loss)
            letters += len(part)
        if letters > _MOST_LETTERS:
            yield Piece(" ... (more)")
            return


def _spans(prepared: Prepared, processor: Processor) -> Iterator[tuple[str, bool]]:
    """The text, cut where loss begins and ends."""
    start = 0
    for has_loss, group in itertools.groupby(prepared.labels.tolist()):
        stop = start + len(list(group))
        yield processor.tokenizer.decode(prepared.input_ids[start:stop], skip_special_tokens=False), has_loss
        start = stop


def _thumb(view: UInt8[np.ndarray, "S S 3"]) -> str:
    drawing = io.BytesIO()
    Image.fromarray(view).resize((_THUMB, _THUMB), Image.Resampling.BICUBIC).save(drawing, "jpeg", quality=80)
    return _data_uri("image/jpeg", drawing.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
