"""Answers to the questions of all tasks, by one engine through one batcher, kept in a file from which a later run resumes."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool

from owl3_jax.config import JsonTree, ModelConfig
from owl3_jax.evaluation.answer_file import answer_key
from owl3_jax.evaluation.asked import Asked, in_order_of_asking, requests, rows_together
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.host.signals import StoppedError
from owl3_jax.inference.batcher import answer_requests, measure
from owl3_jax.inference.clock import Stage
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.prompt_sizes import choose_batch_sizes
from owl3_jax.inference.results import Record, Results
from owl3_jax.processing.processor import Processor

_TIMED, _TIMED_EVERY = 3, 16  # batches whose stages are timed: the second to this one, then every so many
_FORECAST_AFTER = 3  # batches

Key = tuple[str, str]  # name of a task, id of one of its questions


class Spent(NamedTuple):
    """What the answers of one run cost. Those of earlier runs are not in it."""

    seconds: float = 0.0
    questions: int = 0
    images: int = 0
    tokens: int = 0
    shares: tuple[tuple[Stage, float], ...] = ()  # of the time of batches that were timed

    def to_json(self) -> JsonTree:
        """With rates, for report.json."""
        rate = lambda count: round(count / self.seconds, 2) if self.seconds else 0.0
        return {
            **self._asdict(),
            "seconds": round(self.seconds, 1),
            "images_per_second": rate(self.images),
            "tokens_per_second": rate(self.tokens),
            "shares": {name: round(share, 3) for name, share in self.shares},
        }


def answer_questions(
    asked: Sequence[Asked],
    data: DataRoot,
    path: Path,
    model: ModelConfig,
    processor: Processor,
    load_engine: Callable[[], Engine],
    must_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[Key, Record], Spent]:
    """The records of all questions, with `answers` or `error`, and what the new ones cost. None but in the first process.

    Questions that failed in an earlier run are asked again.

    Args:
        asked: the questions.
        data: where their images and videos are, and the settings.
        path: the file of answers, which is read and added to.
        model: of the engine.
        processor: of the same checkpoint.
        load_engine: called when there is a question without an answer.
        must_stop: asked after each batch, by all processes, whether to raise StoppedError.
    """
    ordered = in_order_of_asking(asked)
    versions: dict[str, str] = {}
    names = {each.key: answer_key(each, data, versions) for each in ordered}
    results = _open_results(path)
    waiting = _waiting(list(names.values()), results)
    failures: dict[Key, Record] = {}
    new = [each for each, waits in zip(ordered, waiting, strict=True) if waits]
    spent = Spent()
    with Progress(
        len(waiting),
        "question",
        done=int((~waiting).sum()),
        silent=results is None,
        lines_every=SECONDS_BETWEEN_LINES,
        line="answered {done}/{total} {unit}s",
    ) as progress:
        if not waiting.all():
            progress.say(f"{(~waiting).sum()} of {len(waiting)} answers are taken from {path}")
        for records, so_far in _records(new, data, model, processor, load_engine, progress):
            spent = so_far
            failures |= {new[record["id"]].key: record for record in records if "error" in record}
            named = [{**record, "id": names[new[record["id"]].key]} for record in records if "error" not in record]
            if results is not None:
                results.append(named)
            progress.advance(len(records))
            if must_stop():
                raise StoppedError
    if results is None:
        return {}, spent
    answered = results.answered()
    return failures | {key: answered[name] for key, name in names.items() if name in answered}, spent


def _open_results(path: Path) -> Results | None:
    """The file of answers; None in all processes but the first."""
    if jax.process_index() > 0:
        return None
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
    return Results(path)


def _waiting(ids: Sequence[str], results: Results | None) -> Bool[np.ndarray, " questions"]:
    """Which questions have no answer yet. All processes follow the first one's file."""
    answered = results.answered() if results else {}
    waiting = np.array([name not in answered for name in ids], bool)
    return np.asarray(multihost_utils.broadcast_one_to_all(waiting)).astype(bool)


def _records(
    asked: Sequence[Asked],
    data: DataRoot,
    model: ModelConfig,
    processor: Processor,
    load_engine: Callable[[], Engine],
    progress: Progress,
) -> Iterator[tuple[list[Record], Spent]]:
    """The results of the questions, a batch at a time, and what all of them have cost so far."""
    if not asked:
        return
    settings = data.settings
    sizes = list(measure(processor, requests(asked, data), model.max_position_embeddings))
    engine = load_engine()
    clock = engine.runtime.clock
    batches = choose_batch_sizes(
        sizes,
        shapes=settings.batch_shapes,
        images_per_batch=settings.images_per_batch,
        tokens_per_image=model.vision.tokens_per_image,
        rows_divisor=engine.runtime.rows(1),
        rows_per_batch=rows_together(asked, settings),
    )
    spent, start = Spent(), time.monotonic()
    for number, records in enumerate(answer_requests(engine, processor, requests(asked, data, processor.image_size), batches)):
        spent = Spent(
            time.monotonic() - start,
            spent.questions + len(records),
            spent.images + sum(_images(asked[record["id"]], record) for record in records),
            spent.tokens + sum(answer["tokens"] for record in records for answer in record.get("answers", ())),
            tuple(clock.shares().items()),
        )
        yield records, spent
        # The first batch compiles, which is no stage's time.
        clock.running = number + 1 < _TIMED or (number + 1) % _TIMED_EVERY == 0
        if number + 1 == _FORECAST_AFTER and spent.questions < len(asked):
            left = spent.seconds / spent.questions * (len(asked) - spent.questions)
            progress.say(f"about {_duration(left)} more for {len(asked) - spent.questions} questions")


def _images(asked: Asked, record: Record) -> int:
    """Images and frames of a question, without crops."""
    return len(asked.question.images) + sum(map(len, record.get("frames", ())))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
