"""Answers by beam search: all at once, because the best one is known only when the search is over."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from owl3_jax.inference import beams, buckets
from owl3_jax.inference.answers import Answer, Answers, make_answer, push_until_stop, token_limits
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.context import Context, seen_tokens
from owl3_jax.inference.runtime import fetch
from owl3_jax.inference.sampling import Sampling
from owl3_jax.inference.text_stream import TextStream
from owl3_jax.processing.tokenizer import ChatTokenizer


class BeamAnswers:
    """The counterpart of `Answers` for `num_beams` > 1. Does not change the context.

    Stop strings cut the texts of the answers that were found; they end no beam.
    """

    def __init__(
        self,
        context: Context,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        tokenizer: ChatTokenizer,
    ) -> None:
        """Takes the arguments of `Answers`; `num_beams` is the same for all rows too."""
        self._context, self._prompts, self._sampling, self._tokenizer = context, prompts, sampling, tokenizer

    def stream(self) -> Iterator[list[str]]:
        """The texts of all answers, once."""
        yield [answer.text for answer in self.run()]

    def run(self) -> list[Answer]:
        """The `n` best answers to each prompt, best first."""
        found = self._search()
        lengths: Int32[np.ndarray, "B W"] = fetch(found.lengths)
        tokens: Int32[np.ndarray, "B W A"] = fetch(found.tokens)
        logprobs = None if found.logprobs is None else fetch(found.logprobs)
        answers = []
        for row, beam in np.ndindex(len(tokens), self._sampling[0].n):
            ids = tokens[row, beam, : lengths[row, beam]].tolist()
            text = TextStream(self._tokenizer, self._sampling[row].stop)
            kept, _ = push_until_stop(text, ids, self._tokenizer.stop_ids)
            text.finish()
            own = None if logprobs is None or not self._sampling[row].logprobs else logprobs[row, beam]
            answers.append(make_answer(kept, text, self._tokenizer.stop_ids, own))
        return answers

    def close(self) -> list[tuple[int, ...]]:
        """The tokens of each answer that the caches hold: none."""
        return [()] * (len(self._prompts) * self._sampling[0].n)

    def _search(self) -> beams.Hypotheses:
        context, width, ops = self._context, self._sampling[0].num_beams, SamplingOps.of(self._sampling)
        limits = token_limits(context, self._prompts, self._sampling)
        settings = beams.BeamSettings(
            SamplingRows.of([sampling for sampling in self._sampling for _ in range(width)]),
            jnp.array([sampling.length_penalty for sampling in self._sampling], np.float32),
            jnp.array(limits),
            jnp.array(self._tokenizer.stop_ids, np.int32),
        )
        prompts = seen_tokens(self._prompts, context.rows, ops)
        sizes = {"ops": ops, "beams": width, "capacity": buckets.text_slots(int(limits.max()))}
        inputs = (context.last, context.tokens.astype(np.int32), context.text, context.images, prompts, settings)
        found: beams.Hypotheses = context.runtime.run_model(beams.search, *inputs, positions=width, rows=context.rows, **sizes)
        return found


def answers_to(
    context: Context, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling], tokenizer: ChatTokenizer
) -> Answers | BeamAnswers:
    """Answers in progress to the prompts that a context has read, by sampling or by beam search."""
    form = BeamAnswers if sampling[0].num_beams > 1 else Answers
    return form(context, prompts, sampling, tokenizer)
