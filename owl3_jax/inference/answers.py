"""Answers to the prompts of a context, token by token on the device, text by text on the host."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from owl3_jax.inference import buckets, programs
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.context import Context
from owl3_jax.inference.runtime import fetch
from owl3_jax.inference.sampling import Sampling
from owl3_jax.inference.text_stream import TextStream
from owl3_jax.processing.tokenizer import ChatTokenizer

_TOKENS_BETWEEN_STOP_STRINGS = 16  # tokens that are decoded before the host looks for stop strings


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to one prompt."""

    text: str  # without stop ids and stop strings
    ids: tuple[int, ...]  # all tokens, up to the stop id or the one that completes a stop string
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[float, ...] | None = None  # of each token, nats, by the model's own distribution


class Answers:
    """R = B * n answers in progress. `context` does not change until `close`."""

    def __init__(
        self,
        context: Context,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        tokenizer: ChatTokenizer,
    ) -> None:
        """Chooses the first tokens.

        Args:
            context: with the prompts read, B rows.
            prompts: all tokens of each row, for the repetition penalty; a row without any is padding.
            sampling: of each row; `n` is the same for all.
            tokenizer: of the checkpoint.
        """
        self._context, samples = context, sampling[0].n
        per_answer, numbers = [s for s in sampling for _ in range(samples)], [*range(samples)] * len(sampling)
        self._streams = [TextStream(tokenizer, s.stop) for s in per_answer]
        self._stop_ids = tokenizer.stop_ids
        self._wants_logprobs = [s.logprobs for s in per_answer]
        self._limits = np.repeat(token_limits(context, prompts, sampling), samples)
        self._ops = SamplingOps.of(sampling)
        self._settings = programs.Settings(
            SamplingRows.of(per_answer, numbers), jnp.array(self._limits), jnp.array(self._stop_ids, np.int32)
        )
        self._ids: list[list[int]] = [[] for _ in self._streams]
        capacity = buckets.text_slots(int(self._limits.max()))
        self._state = context.begin(self._settings, self._ops, capacity=capacity, prompts=prompts)

    def stream(self, every: int = 1) -> Iterator[list[str]]:
        """The new text of every row, after each `every` tokens."""
        yield self._read()
        while not self._finished():
            self._decode(every)
            yield self._read()
        yield [stream.finish() for stream in self._streams]

    def run(self) -> list[Answer]:
        """All answers, stopping on the host as rarely as possible."""
        stops = any(stream.looks_for_stop for stream in self._streams)
        every = _TOKENS_BETWEEN_STOP_STRINGS if stops else int(self._limits.max(initial=1))
        for _ in self.stream(every):
            pass
        return self.answers()

    def answers(self) -> list[Answer]:
        """The answers so far."""
        logprobs = None if self._state.logprobs is None else fetch(self._state.logprobs)
        return [self._answer(row, logprobs) for row in range(len(self._ids))]

    def close(self) -> list[tuple[int, ...]]:
        """Makes the answers, one to each row, part of the context; returns the tokens of each that it then holds."""
        fed = self._context.absorb(self._state)
        return [tuple(ids[: int(count)]) for ids, count in zip(self._ids, fed, strict=True)]

    def _decode(self, tokens: int) -> None:
        state = self._state._replace(done=self._state.done | np.array([stream.stopped for stream in self._streams]))
        limit = min(int(fetch(state.written)) + tokens, int(self._limits.max()))
        self._state = self._context.decode(state, self._settings, self._ops, limit)

    def _read(self) -> list[str]:
        """Fetches the newest tokens; returns the text that they complete."""
        answer, written = fetch(self._state.answer), int(fetch(self._state.written))
        texts = []
        for row, (stream, ids) in enumerate(zip(self._streams, self._ids, strict=True)):
            new = self._until_stop(answer[row, len(ids) : min(written, self._limits[row])], ids) if not stream.stopped else []
            kept, text = push_until_stop(stream, new, self._stop_ids)
            ids.extend(kept)
            texts.append(text)
        return texts

    def _until_stop(self, tokens: Int32[np.ndarray, " A"], before: Sequence[int]) -> list[int]:
        if before and before[-1] in self._stop_ids:
            return []
        stops = np.flatnonzero(np.isin(tokens, self._stop_ids))
        return tokens[: stops[0] + 1 if len(stops) else None].tolist()

    def _finished(self) -> bool:
        done = fetch(self._state.done) | [stream.stopped for stream in self._streams]
        return bool(done.all())

    def _answer(self, row: int, logprobs: Float32[np.ndarray, "R A"] | None) -> Answer:
        own = None if logprobs is None or not self._wants_logprobs[row] else logprobs[row]
        return make_answer(self._ids[row], self._streams[row], self._stop_ids, own)


def push_until_stop(stream: TextStream, ids: Sequence[int], stop_ids: Sequence[int]) -> tuple[list[int], str]:
    """Pushes the next tokens of an answer; returns those up to the one that completes a stop string, and their text."""
    if not stream.looks_for_stop:
        return list(ids), stream.push([token for token in ids if token not in stop_ids])
    kept, text = [], ""
    for token in ids:
        kept.append(token)
        text += stream.push([token] if token not in stop_ids else [])
        if stream.stopped:
            break
    return kept, text


def make_answer(
    ids: Sequence[int], stream: TextStream, stop_ids: Sequence[int], logprobs: Float32[np.ndarray, " A"] | None
) -> Answer:
    """The answer of tokens `ids`, whose text `stream` holds; `logprobs` has one for each, and perhaps more."""
    stopped = stream.stopped or bool(ids and ids[-1] in stop_ids)
    own = None if logprobs is None else tuple(logprobs[: len(ids)].tolist())
    return Answer(stream.text, tuple(ids), "stop" if stopped else "length", own)


def token_limits(context: Context, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> Int32[np.ndarray, " B"]:
    """Tokens that each answer can have: as many as are requested and the model has positions for; 0 for padding."""
    wanted = [s.max_new_tokens if prompt else 0 for s, prompt in zip(sampling, prompts, strict=True)]
    room = context.runtime.config.max_position_embeddings - context.tokens
    return np.minimum(wanted, room).astype(np.int32)
