"""What a check found, as one HTML page that needs no other file: numbers, histograms, problems, and samples as the model sees
them, the worst first."""

import collections
import io
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from owl3_jax.config import DataConfig, JsonTree
from owl3_jax.data.cards import Card, Piece, data_uri, pieces_of, render
from owl3_jax.data.check.record import Checked, Checker
from owl3_jax.data.check.report import Found
from owl3_jax.data.readers.records import BadRecord, Problem

_OF_EACH_KIND, _LONGEST, _CHOSEN = 4, 4, 8  # samples on the page
_MOST_PROBLEMS = 1000  # on the page; the JSON has all
_BAR, _LIMIT = "#4477aa", "#cc2b2b"


def render_page(
    report: JsonTree, checkers: Mapping[str, Checker], checked: Mapping[str, Sequence[Checked]], problems: Sequence[Found]
) -> str:
    """The page's HTML. `checkers` and `checked` are those of each source, by its path."""
    config = next(iter(checkers.values())).config
    read = [each for of_source in checked.values() for each in of_source if each.tokens]
    return render(
        "data/check/page.html",
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
    return data_uri("image/png", drawing.getvalue())


def _cards(
    checkers: Mapping[str, Checker], checked: Mapping[str, Sequence[Checked]], problems: Sequence[Found]
) -> Iterator[Card]:
    of_record = collections.defaultdict(list)
    for problem in problems:
        of_record[problem.source, problem.record].append(problem)
    for path, index in _chosen(checked, problems, of_record):
        each, checker = checked[path][index], checkers[path]
        size = f"{each.tokens} tokens, {each.images} images, {each.target_tokens} tokens with loss" if each.tokens else ""
        faults = [Problem(each.kind, each.detail) for each in of_record[path, index]]
        yield Card(f"record {index} of {path}", faults, size, list(_pieces(checker, index)))


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
    yield from pieces_of(prepared.input_ids, prepared.labels, prepared.views(), checker.processor.tokenizer)
