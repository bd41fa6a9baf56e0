"""Answers to the prompts of all tasks, by one engine through one batcher, kept in a file from which a later run resumes."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool

from owl3_jax.config import Config, ConfigError
from owl3_jax.evaluation.answer_file import answers_path, prompt_digest
from owl3_jax.evaluation.task import AnyTask
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.inference.batcher import answer_requests, measure
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.prompt_sizes import PromptSize, choose_batch_sizes
from owl3_jax.inference.requests import Request
from owl3_jax.inference.results import Record, Results
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Processor

_FAILURES_NAMED = 3

Key = tuple[str, str]  # name of a task, id of one of its prompts
Answers = dict[Key, str]


class FailedPrompts(RuntimeError):
    """Some prompts have no answer; the message names the first ones and says why. All others are answered and saved."""


class _Asked(NamedTuple):
    """All prompts of an evaluation, without their text and images."""

    tasks: Sequence[AnyTask]
    sampling: Sampling
    ids: dict[Key, str]  # each prompt's key in the file of answers, task by task

    def requests(self, wanted: Bool[np.ndarray, " prompts"]) -> Iterator[Request]:
        """The wanted prompts, made one at a time."""
        prompts = itertools.chain.from_iterable(task.prompts() for task in self.tasks)
        for name, prompt in itertools.compress(zip(self.ids.values(), prompts, strict=True), wanted):
            yield Request(name, prompt.messages, prompt.images, prompt.videos, self.sampling)


def answer_prompts(
    config: Config, workdir: Path, tasks: Sequence[AnyTask], processor: Processor, load_engine: Callable[[], Engine]
) -> Answers:
    """The answers to all prompts, including those of earlier runs; empty in all processes but the first.

    Batches have `config.eval.batch_shapes` different sizes at most, and `config.eval.images_per_batch` images at most, unless
    the fewest rows that the mesh allows have more.

    Raises:
        ConfigError: a prompt is longer than the model's positions.
        FailedPrompts: some prompts could not be answered.
    """
    sampling = Sampling(max_new_tokens=config.eval.max_new_tokens)
    asked = _Asked(tasks, sampling, _ids(tasks))
    path = answers_path(workdir / "eval", workdir, config, processor, sampling)
    results = _open_results(path)
    waiting = _waiting(list(asked.ids.values()), results)
    failures = list[Record]()
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
        for records in _records(config, asked, waiting, processor, load_engine):
            failures += [record for record in records if "error" in record]
            if results is not None:
                results.append([record for record in records if "error" not in record])
            progress.advance(len(records))
    _require_answers(failures, len(waiting))
    answered = results.answered() if results else {}
    return {key: answered[name]["answers"][0]["text"] for key, name in asked.ids.items()} if results else {}


def _ids(tasks: Sequence[AnyTask]) -> dict[Key, str]:
    """The prompts' keys in the file: a prompt that has changed since has a different key."""
    ids: dict[Key, str] = {}
    for task in tasks:
        for prompt in task.prompts():
            key = task.name, prompt.id
            if key in ids:
                raise ValueError(f"task {task.name} has several prompts with the id {prompt.id!r}; ids must differ")
            ids[key] = f"{task.name}/{prompt.id} {prompt_digest(prompt)}"
    return ids


def _open_results(path: Path) -> Results | None:
    """The file of answers; None in all processes but the first."""
    if jax.process_index() > 0:
        return None
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
    return Results(path)


def _waiting(ids: Sequence[str], results: Results | None) -> Bool[np.ndarray, " prompts"]:
    """Which prompts have no answer yet. All processes follow the first one's file."""
    answered = results.answered() if results else {}
    waiting = np.array([name not in answered for name in ids])
    return np.asarray(multihost_utils.broadcast_one_to_all(waiting)).astype(bool)


def _records(
    config: Config,
    asked: _Asked,
    waiting: Bool[np.ndarray, " prompts"],
    processor: Processor,
    load_engine: Callable[[], Engine],
) -> Iterator[list[Record]]:
    """The results of the waiting prompts, a batch at a time."""
    if not waiting.any():
        return
    sizes = list(measure(processor, asked.requests(waiting)))
    _require_positions(sizes, config)
    engine = load_engine()
    batches = choose_batch_sizes(
        sizes,
        shapes=config.eval.batch_shapes,
        images_per_batch=config.eval.images_per_batch,
        tokens_per_image=config.model.vision.tokens_per_image,
        rows_divisor=engine.runtime.rows(1),
    )
    yield from answer_requests(engine, processor, asked.requests(waiting), batches)


def _require_positions(sizes: Sequence[PromptSize], config: Config) -> None:
    longest = max((size.tokens for size in sizes), default=0)
    needed, most = longest + config.eval.max_new_tokens, config.model.max_position_embeddings
    if needed > most:
        raise ConfigError(
            f"the longest question and its answer take {needed} tokens, model.max_position_embeddings is {most}; "
            f"name fewer images in the settings of the tasks ({', '.join(config.eval.tasks)})"
        )


def _require_answers(failures: Sequence[Record], prompts: int) -> None:
    if failures:
        named = "; ".join(f"{record['id']}: {record['error']}" for record in failures[:_FAILURES_NAMED])
        more = "; ..." if len(failures) > _FAILURES_NAMED else ""
        raise FailedPrompts(
            f"{len(failures)} of {prompts} prompts failed: {named}{more}. The answers to the others are saved: run the same "
            "command again to retry only these, and to get the scores"
        )
