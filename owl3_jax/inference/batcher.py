"""Requests to results: similar prompts share a batch, and one that fails leaves the others of its batch unharmed."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from owl3_jax.cli.model_flags import FAILURES
from owl3_jax.inference.answers import Answer
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.requests import Failure, Request
from owl3_jax.inference.results import Record
from owl3_jax.processing.processor import Prepared, Processor

_BATCHES_PER_WINDOW = 8  # prompts that are sorted together; results are at most so many batches out of order


class _Ready(NamedTuple):
    request: Request
    prompt: Prepared


def answer_requests(
    engine: Engine, processor: Processor, requests: Iterable[Request | Failure], batch_size: int
) -> Iterator[list[Record]]:
    """The results of all requests, a batch at a time, each window of a few batches in the order of the prompts' sizes."""
    for window in _batched(requests, _BATCHES_PER_WINDOW * batch_size):
        prepared = [_prepare(processor, request) for request in window]
        if failures := [_error_record(each) for each in prepared if isinstance(each, Failure)]:
            yield failures
        for batch in similar([each for each in prepared if isinstance(each, _Ready)], batch_size):
            yield _answer(engine, batch)


def similar(ready: Sequence[_Ready], batch_size: int) -> Iterator[list[_Ready]]:
    """Batches of at most `batch_size` prompts that go together: the same `n` and `num_beams`, then the nearest sizes."""
    kind = lambda each: (each.request.sampling.n, each.request.sampling.num_beams)
    size = lambda each: (each.prompt.num_images, len(each.prompt.input_ids))
    for _, group in itertools.groupby(sorted(ready, key=lambda each: (kind(each), size(each))), key=kind):
        yield from _batched(group, batch_size)


def _prepare(processor: Processor, request: Request | Failure) -> _Ready | Failure:
    if isinstance(request, Failure):
        return request
    try:
        return _Ready(request, processor.prepare(request.messages, request.images, request.videos))
    except FAILURES as error:
        return Failure(request.id, str(error))


def _answer(engine: Engine, batch: Sequence[_Ready]) -> list[Record]:
    """The results of a batch. When it fails, its halves are tried, down to the prompts that are at fault."""
    prompts, samplings = [each.prompt for each in batch], [each.request.sampling for each in batch]
    try:
        answers = engine.generate(prompts, samplings)
        return [_record(each.request, found) for each, found in zip(batch, answers, strict=True)]
    except FAILURES as error:
        if len(batch) == 1:
            return [_error_record(Failure(batch[0].request.id, str(error)))]
    # Not in the handler: there the failed attempt's caches would still be in memory.
    middle = len(batch) // 2
    return _answer(engine, batch[:middle]) + _answer(engine, batch[middle:])


def _record(request: Request, answers: Sequence[Answer]) -> Record:
    return {"id": request.id, "answers": [_answer_record(answer) for answer in answers]}


def _answer_record(answer: Answer) -> Record:
    record: Record = {"text": answer.text.strip(), "finish_reason": answer.finish_reason, "tokens": len(answer.ids)}
    return record if answer.logprobs is None else record | {"logprobs": [round(value, 5) for value in answer.logprobs]}


def _error_record(failure: Failure) -> Record:
    return {"id": failure.id, "error": failure.error}


def _batched(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
