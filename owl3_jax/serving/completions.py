"""Answers under way: queued with the engine, read as they come, given up when nobody waits for them."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence

from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.answers import Asked, Tally
from owl3_jax.serving.errors import invalid, too_many, unavailable
from owl3_jax.serving.generation import (
    Begun,
    EngineClosedError,
    Event,
    Generation,
    Piece,
    QueueFullError,
    ServingEngine,
    TooLargeError,
)
from owl3_jax.serving.mailbox import Mailbox
from owl3_jax.serving.metrics import Metrics
from owl3_jax.serving.parse import Wanted
from owl3_jax.serving.preparing import DecodedPrompt
from owl3_jax.serving.record import Record, new_id


class Answers:
    """The answers to one prompt. Whoever has them calls `close` in the end, whatever happens."""

    def __init__(self, engine: ServingEngine, metrics: Metrics, record: Record, ids: Sequence[str], asked: Asked) -> None:
        self._engine, self._metrics, self._record, self._ids = engine, metrics, record, ids
        self._mailbox = Mailbox(len(ids))
        self._queued = time.perf_counter()
        self._last: dict[int, float] = {}  # when each answer's last token came
        self.asked, self.tally = asked, Tally(asked)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queues all of them, or none. Raises ApiError."""
        try:
            for generation, listener in zip(generations, self._mailbox.listeners(), strict=True):
                self._engine.submit(generation, listener)
        except EngineClosedError as error:
            raise unavailable("the server is shutting down") from error
        except QueueFullError as error:
            raise too_many("too many requests are waiting", error.retry_after) from error
        except TooLargeError as error:
            raise invalid("messages", str(error), code="context_length_exceeded") from error

    async def take(self, seconds: float | None = None) -> list[tuple[int, Event]]:
        """What is new of the answers, by their numbers; nothing if there is nothing for so many seconds.

        Raises ApiError when one of them failed.
        """
        try:
            async with asyncio.timeout(seconds):
                events = await self._mailbox.take()
        except TimeoutError:
            return []
        for number, event in events:
            self._observe(number, event)
            self.tally.add(event)
        return events

    def close(self) -> None:
        """Gives up those that have not ended, and records all."""
        self._mailbox.close()
        if not self.tally.is_complete:
            for request_id in self._ids:
                self._engine.cancel(request_id)
        usage = self.tally.usage()
        self._record.completion_tokens = usage.completion_tokens
        self._record.cached_tokens = usage.prompt_tokens_details.cached_tokens
        self._record.cached_images = usage.prompt_tokens_details.cached_images

    def _observe(self, number: int, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Begun):
            self._metrics.queue.observe(now - self._queued)
        elif isinstance(event, Piece) and event.tokens:
            self._observe_tokens(number, len(event.tokens), now)

    def _observe_tokens(self, number: int, tokens: int, now: float) -> None:
        if number in self._last:
            for _ in range(tokens):  # those of one piece came together, as far as can be seen from here
                self._metrics.between_tokens.observe((now - self._last[number]) / tokens)
        else:
            self._metrics.first_token.observe(self._record.seconds)
        self._last[number] = now


def start_answers(
    engine: ServingEngine,
    metrics: Metrics,
    record: Record,
    wanted: Wanted,
    prompt: DecodedPrompt,
    *,
    model: str,
    positions: int | None,
) -> Answers:
    """Queues the answers that a request wants. Raises ApiError."""
    request_id = new_id()  # not the client's: two clients may choose the same, and one would end the other's answer
    ids = [f"{request_id}-{number}" for number in range(wanted.answers)]
    asked = Asked(
        id=f"chatcmpl-{request_id}",
        created=int(time.time()),
        model=model,
        answers=wanted.answers,
        prompt_tokens=len(prompt.input_ids),
        images=len(prompt.views),
        has_logprobs=wanted.sampling.logprobs,
    )
    record.prompt_tokens, record.images = asked.prompt_tokens, asked.images
    sampling = _fitting(wanted, asked.prompt_tokens, positions)
    answers = Answers(engine, metrics, record, ids, asked)
    generations = [
        _generation(ids[number], number, wanted, prompt, sampling, record.client) for number in range(wanted.answers)
    ]
    try:
        answers.submit(generations)
    except BaseException:
        answers.close()
        raise
    record.answers = asked.answers  # from here on the metrics count it
    return answers


def _fitting(wanted: Wanted, prompt_tokens: int, positions: int | None) -> Sampling:
    """A request that does not say how long its answer may be gets what there is room for, up to the server's default."""
    sampling = wanted.sampling
    room = sampling.max_new_tokens if positions is None else positions - prompt_tokens
    if not wanted.leaves_length or not sampling.min_new_tokens <= room < sampling.max_new_tokens or room < 1:
        return sampling
    return dataclasses.replace(sampling, max_new_tokens=room)


def _generation(
    request_id: str, number: int, wanted: Wanted, prompt: DecodedPrompt, sampling: Sampling, client: str
) -> Generation:
    return Generation(
        request_id=request_id,
        input_ids=prompt.input_ids,
        image_starts=prompt.image_starts,
        views=prompt.views,
        sampling=sampling,
        sample=number,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        top_logprobs=wanted.top_logprobs,
        client=client,
        priority=wanted.priority,
    )
