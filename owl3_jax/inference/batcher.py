"""Requests to records: prompts of similar size share a batch, and one that fails leaves the others of its batch unharmed.

Either each batch is padded as its own prompts need it, or all batches have one of a few sizes, chosen for all prompts before
the first is answered. The latter compiles no more programs than there are sizes, which pays where prompts are many:

    for records in answer_requests(engine, processor, requests, 8): ...

    sizes = choose_batch_sizes(measure(processor, requests), ...)
    for records in answer_requests(engine, processor, requests, sizes): ...
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from owl3_jax.host.ahead import ahead
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.batched import batched
from owl3_jax.inference.engine import Engine, check_length, prompt_size
from owl3_jax.inference.memory import FAILURES, OutOfMemory
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize, smallest_fit
from owl3_jax.inference.requests import Failure, Request
from owl3_jax.inference.results import Record
from owl3_jax.processing.media import Clip
from owl3_jax.processing.processor import Prepared, Processor

_BATCHES_PER_WINDOW = 8  # batches whose prompts are sorted together; results are at most that far out of order


class Ready(NamedTuple):
    """A request whose images are not decoded yet."""

    request: Request
    prompt: Prepared

    @property
    def answers(self) -> tuple[int, int]:
        """`n` and `num_beams`, which all prompts of a batch have in common."""
        return self.request.sampling.n, self.request.sampling.num_beams


class _Batch(NamedTuple):
    members: list[Ready]
    size: BatchSize | None = None  # what it is padded to


def answer_requests(
    engine: Engine, processor: Processor, requests: Iterable[Request | Failure], batches: int | Sequence[BatchSize]
) -> Iterator[list[Record]]:
    """The results of all requests, a batch at a time, with the failures in between.

    Args:
        engine: answers the prompts.
        processor: of the same checkpoint.
        requests: read a few batches ahead; images are decoded when their batch is answered.
        batches: the most rows of a batch, which is made of the most similar of the next prompts; or the sizes that batches
            are padded to, cheapest first, each for the prompts that fit into no cheaper one.
    """
    prepared = (_prepare(processor, request, engine.runtime.config.max_position_embeddings) for request in requests)
    if isinstance(batches, int):
        grouped = _similar_batches(prepared, batches)
    else:  # many prompts: a thread prepares the next batch while one is computed
        grouped = _batches_of_sizes(ahead(prepared, max(size.rows for size in batches) if batches else 1), batches)
    for group in grouped:
        if isinstance(group, _Batch):
            yield _answer(engine, group.members, group.size)
        else:
            yield [_error_record(failure) for failure in group]


def measure(processor: Processor, requests: Iterable[Request | Failure], positions: int) -> Iterator[PromptSize]:
    """The sizes of all prompts but those that fail, for a model of so many positions. No image is decoded."""
    for request in requests:
        ready = _prepare(processor, request, positions)
        if isinstance(ready, Ready):
            yield prompt_size(ready.prompt)


def similar(ready: Sequence[Ready], rows: int) -> Iterator[list[Ready]]:
    """Batches of at most `rows` prompts that go together: the same `n` and `num_beams`, then the nearest sizes."""
    by_size = sorted(ready, key=lambda each: (each.answers, each.prompt.num_images, len(each.prompt.input_ids)))
    for _, group in itertools.groupby(by_size, key=lambda each: each.answers):
        yield from batched(group, rows)


def _similar_batches(prepared: Iterable[Ready | Failure], rows: int) -> Iterator[_Batch | list[Failure]]:
    """Batches of similar prompts, window by window."""
    for window in batched(prepared, _BATCHES_PER_WINDOW * rows):
        if failures := [each for each in window if isinstance(each, Failure)]:
            yield failures
        yield from map(_Batch, similar([each for each in window if isinstance(each, Ready)], rows))


def _batches_of_sizes(prepared: Iterable[Ready | Failure], sizes: Sequence[BatchSize]) -> Iterator[_Batch | list[Failure]]:
    """Batches of the given sizes, each as soon as it is full; those that never fill up, at the end."""
    waiting: dict[tuple[BatchSize, tuple[int, int]], list[Ready]] = {}
    for each in prepared:
        if isinstance(each, Failure):
            yield [each]
            continue
        size = smallest_fit(prompt_size(each.prompt), sizes)
        members = waiting.setdefault((size, each.answers), [])
        members.append(each)
        if len(members) == size.rows:
            yield _Batch(waiting.pop((size, each.answers)), size)
    for (size, _), members in waiting.items():
        yield _Batch(members, size)


def _prepare(processor: Processor, request: Request | Failure, positions: int) -> Ready | Failure:
    if isinstance(request, Failure):
        return request
    try:
        prompt = processor.prepare(request.messages, request.images, request.videos, request.crop)
        check_length(len(prompt.input_ids), positions, "the prompt")
        return Ready(request, prompt)
    except FAILURES as error:
        return Failure(request.id, str(error))


def _answer(engine: Engine, batch: Sequence[Ready], size: BatchSize | None) -> list[Record]:
    """The results of a batch. When it fails, its halves are tried, down to the prompts that are at fault."""
    prompts, samplings = [each.prompt for each in batch], [each.request.sampling for each in batch]
    try:
        answers = engine.generate(prompts, samplings, size=size)
        return [_record(each, found) for each, found in zip(batch, answers, strict=True)]
    except FAILURES as error:
        if len(batch) == 1:
            return [_error_record(Failure(batch[0].request.id, str(error)))]
        if isinstance(error, OutOfMemory):
            size = None  # half as many rows of the same size would need as much
    # Not in the handler: there the failed attempt's caches would still be in memory.
    middle = len(batch) // 2
    return _answer(engine, batch[:middle], size) + _answer(engine, batch[middle:], size)


def _record(ready: Ready, answers: Sequence[Answer]) -> Record:
    record: Record = {"id": ready.request.id, "answers": [_answer_record(answer) for answer in answers]}
    frames = [list(medium.video.indices) for medium in ready.prompt.media if isinstance(medium, Clip)]
    return record | {"frames": frames} if frames else record


def _answer_record(answer: Answer) -> Record:
    record: Record = {"text": answer.text.strip(), "finish_reason": answer.finish_reason, "tokens": len(answer.ids)}
    return record if answer.logprobs is None else record | {"logprobs": [round(value, 5) for value in answer.logprobs]}


def _error_record(failure: Failure) -> Record:
    return {"id": failure.id, "error": failure.error}
