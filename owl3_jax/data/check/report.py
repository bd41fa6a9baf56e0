"""What a check found, as one tree for JSON."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from owl3_jax.config import JsonTree
from owl3_jax.data.check.forecast import Forecast
from owl3_jax.data.check.record import Checked
from owl3_jax.data.readers.records import Kind, Problem

_QUANTILES = (0.05, 0.5, 0.95)


class Found(NamedTuple):
    """A problem, and where it is."""

    source: str
    record: int  # from 0, within its source
    kind: Kind
    detail: str


def problems_of(sources: Mapping[str, Sequence[Checked]], held_out: Mapping[str, Sequence[Checked]]) -> list[Found]:
    """The problems of all records in their order, with duplicates: of an earlier record, and of held-out images."""
    held = {
        digest: f"record {index} of {path}"
        for path, checked in held_out.items()
        for index, each in enumerate(checked)
        for digest in each.image_digests
    }
    first: dict[str, str] = {}  # where each conversation is first
    found = []
    for path, checked in sources.items():
        for index, each in enumerate(checked):
            here = f"record {index} of {path}"
            problems = [*each.problems, *_duplicates(each, first, held)]
            found += [Found(path, index, *problem) for problem in problems]
            first.setdefault(each.digest, here)
    return found


def _duplicates(checked: Checked, first: Mapping[str, str], held: Mapping[str, str]) -> Iterator[Problem]:
    if checked.digest and checked.digest in first:
        yield Problem("duplicate", f"the same messages and media as {first[checked.digest]}")
    for number, digest in enumerate(checked.image_digests):
        if digest in held:
            yield Problem("duplicate", f"image {number} is held out too, in {held[digest]}")


def is_skipped(checked: Checked) -> bool:
    """Whether training leaves a record out."""
    return not checked.row_tokens


def make_report(sources: Mapping[str, Sequence[Checked]], problems: Sequence[Found], forecast: Forecast | None) -> JsonTree:
    """The report of `owl3 data check --json`."""
    every = [checked for each in sources.values() for checked in each]
    return {
        "records": len(every),
        "skipped": sum(map(is_skipped, every)),
        "counts": dict(collections.Counter(problem.kind for problem in problems).most_common()),
        **_sizes(every),
        "sources": [_source(path, checked, problems) for path, checked in sources.items()],
        "forecast": None if forecast is None else dataclasses.asdict(forecast),
        "images_used_again": _used_again(every),
        "problems": [problem._asdict() for problem in problems],
    }


def _source(path: str, checked: Sequence[Checked], problems: Sequence[Found]) -> JsonTree:
    counts = collections.Counter(problem.kind for problem in problems if problem.source == path)
    truncated = sum(0 < each.row_tokens < each.tokens for each in checked)
    return {
        "source": path,
        "records": len(checked),
        "skipped": sum(map(is_skipped, checked)),
        "truncated": truncated,
        "counts": dict(counts.most_common()),
        **_sizes(checked),
    }


def _sizes(checked: Sequence[Checked]) -> JsonTree:
    """Of the records that are conversations."""
    read = [each for each in checked if each.tokens]
    tokens = sum(each.row_tokens for each in read)
    return {
        "tokens": _summary([each.tokens for each in read]),
        "images": _summary([each.images for each in read]),
        "target_share": round(sum(each.target_tokens for each in read) / tokens, 6) if tokens else 0.0,
    }


def _summary(values: Sequence[int]) -> JsonTree:
    if not values:
        return {"total": 0}
    low, middle, high = (float(x) for x in np.quantile(values, _QUANTILES))
    return {"total": sum(values), "least": min(values), "p05": low, "median": middle, "p95": high, "most": max(values)}


def _used_again(checked: Sequence[Checked]) -> int:
    """Images that are in several records, which is no fault: one image may have many questions."""
    counts = collections.Counter(digest for each in checked for digest in set(each.image_digests))
    return sum(count > 1 for count in counts.values())
