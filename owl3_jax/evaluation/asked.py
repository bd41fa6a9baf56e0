"""The questions of a run: which ones of which tasks, in which order, and as requests of the engine."""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.frames import sampling_of
from owl3_jax.evaluation.question import Excerpt, Question, distinct
from owl3_jax.evaluation.task import Task
from owl3_jax.host.array_cache import ArrayCache
from owl3_jax.inference.memory import FAILURES
from owl3_jax.inference.requests import Failure, Request
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.images import ImageSource, load_image, squash
from owl3_jax.processing.video import FrameCache, SampledVideo

_Pictures = ArrayCache[tuple[str, str, int]]  # images as the model sees them, by task, name and size (pixels)
_VIEW_BYTES = 10**9  # of decoded images, and of frames, that are asked about again


class Asked(NamedTuple):
    """A question of a task."""

    task: Task
    question: Question

    @property
    def key(self) -> tuple[str, str]:
        """The names of both."""
        return self.task.name, self.question.id


class Selection(NamedTuple):
    """Which of a task's questions are asked. Those of one group stay together."""

    limit: int | None = None  # a seeded sample of so many questions or groups of each task
    part: int = 0  # of `parts`, from 0
    parts: int = 1
    seed: int = 0

    def of(self, questions: Sequence[Question]) -> list[Question]:
        """The chosen ones, in their order."""
        units: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            units.setdefault(question.group or f"\0{number}", []).append(number)
        chosen = list(units.values())
        if self.limit is not None and self.limit < len(chosen):
            places = np.random.default_rng(self.seed).choice(len(chosen), self.limit, replace=False)
            chosen = [chosen[place] for place in sorted(places.tolist())]
        return [questions[number] for number in sorted(itertools.chain.from_iterable(chosen[self.part :: self.parts]))]


def parse_shard(text: str | None) -> tuple[int, int]:
    """`i/n`, the part i of n, from 1, as numbers from 0; (0, 1) for None. Raises ConfigError."""
    if text is None:
        return 0, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard must be i/n with i from 1 to n, such as 1/4; got {text!r}")
    return int(part) - 1, int(parts)


def questions_of(task: Task, data: DataRoot) -> list[Question]:
    """All questions of a task; those whose ids repeat have `/0`, `/1` and so on after them.

    Raises DataError where files are missing, and ConfigError where there is no question.
    """
    questions = list(task.questions(data))
    if not questions:
        raise ConfigError(f"task {task.name} has no questions")
    names = distinct([question.id for question in questions])
    questions = [
        question if question.id == name else dataclasses.replace(question, id=name)
        for question, name in zip(questions, names, strict=True)
    ]
    if task.frames is not None and data.settings.frames and not any(question.videos for question in questions):
        raise ConfigError(f"task {task.name} has no videos: leave out --frames")
    return questions


def ask_all(tasks: Iterable[Task], data: DataRoot, selection: Selection) -> list[Asked]:
    """The chosen questions of all tasks, task by task. Raises what `questions_of` and `select` do."""
    return select([Asked(task, question) for task in tasks for question in questions_of(task, data)], selection)


def select(asked: Iterable[Asked], selection: Selection) -> list[Asked]:
    """The chosen ones of each task's questions, which follow each other. Raises ConfigError when there is none."""
    chosen: list[Asked] = []
    for _, of_task in itertools.groupby(asked, key=lambda each: each.task.name):
        members = list(of_task)
        chosen += [Asked(members[0].task, question) for question in selection.of([each.question for each in members])]
    if not chosen:
        raise ConfigError(f"part {selection.part + 1} of {selection.parts} has no question: there are fewer than parts")
    return chosen


def in_order_of_asking(asked: Sequence[Asked]) -> list[Asked]:
    """Questions that are asked with several numbers of frames follow each other, so that they find their video's features."""
    families: dict[str, dict[str, list[Asked]]] = {}
    for each in asked:
        base = each.task.name.rpartition("@")[0] if any(video.share for video in each.question.videos) else each.task.name
        families.setdefault(base, {}).setdefault(each.task.name, []).append(each)
    return [
        each
        for family in families.values()
        # The largest number of frames first: it computes the features for all.
        for together in itertools.zip_longest(*reversed(family.values()))
        for each in together
        if each is not None
    ]


def requests(asked: Sequence[Asked], data: DataRoot, image_size: int | None = None) -> Iterator[Request | Failure]:
    """The requests, numbered from 0 and made one at a time; one whose files are missing becomes a Failure.

    Frames of videos that are asked about with several numbers of frames are decoded once, and with an `image_size` (pixels)
    images that several questions show are, too, as long as there is room for them.
    """
    # Two caches: images are decoded by the thread that makes the requests, frames by the one that answers them.
    pictures, frames = _Pictures(_VIEW_BYTES), FrameCache(_VIEW_BYTES)
    repeating = _repeating(asked)
    for number, each in enumerate(asked):
        decode = None
        if image_size is not None and each.task.name in repeating:
            decode = functools.partial(_decoded, each.task, data, pictures, image_size)
        try:
            yield _request(number, each, data, frames, decode)
        except FAILURES as error:
            yield Failure(number, str(error))


def most_new_tokens(task: Task, settings: EvalConfig) -> int:
    """The most tokens of an answer."""
    return settings.max_new_tokens or task.max_new_tokens


def rows_together(asked: Sequence[Asked], settings: EvalConfig) -> int | None:
    """The most rows of a batch. Where videos are asked about with several numbers of frames, batches of all of these have the
    same videos, whose frames and features are then still there."""
    most = max((count for each in asked for video in each.question.videos for count in video.share), default=0)
    if not most:
        return settings.rows_per_batch
    together = max(1, settings.images_per_batch // most)
    return min(together, settings.rows_per_batch or together)


def _request(
    number: int, asked: Asked, data: DataRoot, frames: FrameCache, decode: Callable[[str], ImageSource] | None
) -> Request:
    """A request; its images are decoded already where there is a way to, and they are not cropped."""
    task, question, settings = asked.task, asked.question, data.settings
    crop = settings.crop if settings.crop is not None else task.crop
    image = decode if decode and crop is False else functools.partial(task.image, data)
    return Request(
        number,
        [{"role": "user", "content": question.text}],
        [image(name) for name in question.images],
        [_video(each, data, frames, is_bare=task.crop is not None) for each in question.videos],
        Sampling(max_new_tokens=most_new_tokens(task, settings)),
        crop,
    )


def _repeating(asked: Sequence[Asked]) -> set[str]:
    """The tasks that show each of their images to several questions."""
    uses: Counter[str] = Counter()
    names: dict[str, set[str]] = {}
    for each in asked:
        uses[each.task.name] += len(each.question.images)
        names.setdefault(each.task.name, set()).update(each.question.images)
    return {task for task, count in uses.items() if count >= 2 * max(1, len(names[task]))}


def _decoded(task: Task, data: DataRoot, pictures: _Pictures, size: int, name: str) -> UInt8[np.ndarray, "S S 3"]:
    key = (task.name, name, size)
    kept: UInt8[np.ndarray, "S S 3"] | None = pictures.get(key)
    if kept is None:
        kept = squash(load_image(task.image(data, name), name), size)
        pictures.put(key, kept)
    return kept


def _video(excerpt: Excerpt, data: DataRoot, frames: FrameCache, *, is_bare: bool) -> SampledVideo:
    shared = frames if excerpt.share else None
    return SampledVideo(data.file(excerpt.file), sampling_of(excerpt), is_bare=is_bare, frames=shared)
