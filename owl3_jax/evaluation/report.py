"""One HTML page of an evaluation, which needs no other file: scores beside the paper's, figures, and samples to browse."""

import base64
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from owl3_jax.config import JsonTree
from owl3_jax.data.cards import data_uri, render
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.frames import sampling_of
from owl3_jax.evaluation.metrics import Metric, Scores
from owl3_jax.evaluation.samples import Sample, by_task
from owl3_jax.evaluation.tables import paper_numbers, with_interval
from owl3_jax.evaluation.task import Task
from owl3_jax.inference.memory import FAILURES
from owl3_jax.processing.images import load_image, upright_size
from owl3_jax.processing.video import open_video

_MOST_SAMPLES = 2000  # of each task on the page, wrong ones first
_WITH_PICTURES = 100  # of each task, wrong ones first
_PICTURES, _THUMB = 16, 96  # of a sample; pixels
_QUALITY = 70


class Result(NamedTuple):
    """What is shown of a task, or of a benchmark that consists of several."""

    name: str
    title: str
    questions: int
    failed: int
    scores: Scores
    task: Task | None = None
    size: str | None = None  # of the model, in the paper's tables


def render_report(
    title: str,
    results: Sequence[Result],
    samples: Sequence[Sample],
    figures: Mapping[str, Figure],
    data: DataRoot,
    tasks: Mapping[str, Task],
    facts: Sequence[tuple[str, str]],
) -> str:
    """The page's HTML; `facts` are what else it says about the run."""
    shown = [each for part in by_task(samples).values() for each in wrong_first(part)[:_MOST_SAMPLES]]
    entries = list(_entries(shown, data, tasks))
    return render(
        "evaluation/report.html",
        title=title,
        rows=[row for result in results for row in _rows(result)],
        figures=[(name, _figure_uri(figure)) for name, figure in figures.items()],
        facts=facts,
        hidden=len(samples) - len(shown),
        # Within a script element, only its end has a meaning.
        samples=json.dumps(entries, ensure_ascii=False).replace("<", "\\u003c"),
    )


def wrong_first(samples: Sequence[Sample]) -> list[Sample]:
    """Failures, then the others by their official score; those of equal score in their order."""
    return sorted(samples, key=lambda each: (not each.answered.error, each.answered.judged.official))


def _rows(result: Result) -> Iterator[dict[str, str]]:
    column = result.task.about.paper if result.task else ""
    reported = paper_numbers(column, result.size)
    for place, (name, metric) in enumerate(result.scores["official"].items() or [("", None)]):
        is_reported = bool(reported) and result.task is not None and name == result.task.about.metric
        yield {
            "task": result.name if place == 0 else "",
            "title": result.title if place == 0 else "",
            "questions": str(result.questions) if place == 0 else "",
            "failed": str(result.failed) if place == 0 and result.failed else "",
            "metric": name,
            "official": with_interval(metric) if metric else "by a server or a judge",
            "strict": with_interval(result.scores["strict"][name]) if metric else "",
            "paper": ", ".join(f"{size} {value:g}" for size, value in reported.items()) if is_reported else "",
            "difference": ", ".join(_difference(metric, value) for value in reported.values())
            if is_reported and metric
            else "",
            "detail": "1" if "(" in name or "@" in name else "",
            "details": str(sum("(" in other or "@" in other for other in result.scores["official"])) if place == 0 else "",
        }


def _difference(metric: Metric, reported: float) -> str:
    """Of a score from the paper's, with the interval that our number of questions gives it."""
    return f"{metric.value - reported:+.1f} [{metric.low - reported:+.1f}, {metric.high - reported:+.1f}]"


def _entries(samples: Sequence[Sample], data: DataRoot, tasks: Mapping[str, Task]) -> Iterator[JsonTree]:
    pictured: dict[str, int] = {}
    for sample in samples:
        question, answer, judged, error = sample.answered
        number = pictured[sample.task] = pictured.get(sample.task, 0) + 1
        pictures = _pictures(sample, tasks.get(sample.task), data) if number <= _WITH_PICTURES else []
        yield {
            "task": sample.task,
            "id": question.id,
            "split": question.split,
            "text": question.text,
            "answer": answer,
            "gold": _gold(sample),
            "parsed": judged.parsed,
            "strictly": judged.strictly,
            "official": judged.official,
            "strict": judged.strict,
            "error": error,
            "scored": question.gold is not None or judged.official > 0,
            "pictures": pictures,
            "more": max(0, len(question.images) + sum(map(len, sample.frames)) - len(pictures)),
            "target": question.target,
            "frames": sample.frames,
        }


def _gold(sample: Sample) -> str:
    question = sample.answered.question
    given = [str(each["answer"]) for each in question.facts.get("annotations", ())]
    others = sorted(set(given), key=given.count, reverse=True)
    return " / ".join(others[:5]) if others else question.gold or ""


def _pictures(sample: Sample, task: Task | None, data: DataRoot) -> list[str]:
    """The first images, and the first frames of videos; none where one cannot be read."""
    question = sample.answered.question
    if task is None:
        return []
    try:
        images = [task.image(data, name) for name in question.images[:_PICTURES]]
        pictures = [load_image(image, "a picture", _draft(image)) for image in images]
        for video in question.videos:
            opened = open_video(data.file(video.file), sampling_of(video), video.file)
            pictures += itertools.islice(opened.frames(), max(0, _PICTURES - len(pictures)))
        return [_thumb(picture) for picture in pictures]
    except FAILURES:  # scores can be looked at without them
        return []


def _draft(image: object) -> tuple[int, int]:
    width, height = upright_size(image, "a picture")
    scale = min(1.0, 2 * _THUMB / max(width, height))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _thumb(picture: Image.Image) -> str:
    scale = _THUMB / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    drawing = io.BytesIO()
    picture.convert("RGB").resize((size[0], size[1]), way).save(drawing, "webp", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(drawing.getvalue()).decode()}"


def _figure_uri(figure: Figure) -> str:
    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=110, bbox_inches="tight")
    return data_uri("image/png", drawing.getvalue())
