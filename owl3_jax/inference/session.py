"""A conversation that keeps its caches: each turn reads only what is new."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from owl3_jax.inference import buckets
from owl3_jax.inference.answers import Answers
from owl3_jax.inference.beam_answers import BeamAnswers, answers_to
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.engine import (
    Advance,
    check_length,
    check_one_answer,
    giving_memory_back,
    ignore_progress,
    room_for_answer,
)
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.chat import Message
from owl3_jax.processing.conversation import as_conversation
from owl3_jax.processing.media import Clip, Picture
from owl3_jax.processing.processor import Prepared, Processor


class Session:
    """Turns of one conversation. An answer is the one that a fresh run on the whole history would give.

    The whole history is tokenised again each turn and compared with what the caches hold. Where they diverge (an answer whose
    text is not tokenised as it was generated), the caches are cut back, so that nothing but time depends on them.
    """

    def __init__(self, runtime: Runtime, processor: Processor) -> None:
        self._runtime, self._processor = runtime, processor
        self._messages: list[Message] = []
        self._media: list[Picture | Clip] = []
        self._context: Context | None = None
        self._cached: list[int] = []  # tokens whose keys and values the context holds
        self._is_streaming = False
        self._image_count = 0  # of all turns; after one that failed the context may hold more

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return tuple(self._messages)

    @property
    def cached_tokens(self) -> int:
        """Positions that the next turn need not read again."""
        return len(self._cached)

    def ask(
        self,
        question: object,
        images: object = None,
        videos: object = None,
        *,
        crop: bool | None = None,
        sampling: Sampling | None = None,
    ) -> str:
        """The answer to a further question: its text, or a list of parts (`owl3_jax.processing.conversation`).

        Takes images and videos, and raises, as `Processor.__call__` and `Engine.generate` do.
        """
        return "".join(self.stream(question, images, videos, crop=crop, sampling=sampling))

    def stream(
        self,
        question: object,
        images: object = None,
        videos: object = None,
        *,
        crop: bool | None = None,
        sampling: Sampling | None = None,
        advance: Advance = ignore_progress,
    ) -> Iterator[str]:
        """As `ask`, piece by piece. What was answered before the stream is closed counts as the answer.

        `advance` is called after every few images of the turn, with how many these were and how many it has in all. A turn
        that fails is not part of the conversation, which can continue. Raises RuntimeError while another stream is open.
        """
        sampling = sampling or Sampling()
        check_one_answer(sampling)
        with self._one_at_a_time():
            yield from self._turn(question, images, videos, crop, sampling, advance)

    def _turn(
        self,
        question: object,
        images: object,
        videos: object,
        crop: bool | None,
        sampling: Sampling,
        advance: Advance,
    ) -> Iterator[str]:
        turn = as_conversation(_as_turn(question), images, videos)
        media = [*self._media, *self._processor.prepare(*turn, crop).media]
        prompt = self._processor.encode([*self._messages, *turn.messages], media)
        pieces: list[str] = []
        with self._giving_up_what_fails():
            answers = self._read(prompt, sampling, advance)
            with contextlib.suppress(GeneratorExit):
                for piece, *_ in answers.stream():  # other rows are padding
                    pieces.append(piece)
                    if piece:
                        yield piece
            self._cached = prompt.input_ids.tolist() + list(answers.close()[0])
        self._messages += [*turn.messages, {"role": "assistant", "content": "".join(pieces)}]
        self._media, self._image_count = media, len(prompt.image_starts)

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._is_streaming:
            raise RuntimeError("the session is still streaming an answer: read that stream to its end, or close it, first")
        self._is_streaming = True
        try:
            yield
        finally:
            self._is_streaming = False

    @contextlib.contextmanager
    def _giving_up_what_fails(self) -> Iterator[None]:
        """Drops the caches when a program that they were donated to was cut short: the next turn reads the history again."""
        try:
            with giving_memory_back(self._runtime):
                yield
        except ValueError:  # the prompt's or an image's fault, found between two programs
            raise
        except BaseException:
            self._context, self._cached, self._image_count = None, [], 0
            raise

    def _read(self, prompt: Prepared, sampling: Sampling, advance: Advance) -> Answers | BeamAnswers:
        """Brings the context up to the end of `prompt` and begins the answer."""
        check_length(len(prompt.input_ids), self._runtime.config.max_position_embeddings, "the conversation")
        ids = prompt.input_ids.tolist()
        kept = _common_prefix(ids, self._cached)
        starts = prompt.image_starts[self._image_count :].tolist()
        room = {
            "images": len(starts),
            "tokens": buckets.prefill_slots(len(ids) - kept)
            + buckets.text_slots(room_for_answer(self._runtime, ids, sampling)),
        }
        if self._context is None:
            self._context = Context.empty(self._runtime, self._runtime.rows(1), **room)
        else:
            self._context.forget_text(kept)
            self._context.forget_images(self._image_count)
            self._context.reserve(**room)
        self._cached = ids[:kept]  # in case what follows fails
        new = NewImages(0, starts, prompt.views(skip=self._image_count))
        self._context.add_images([new], lambda images: advance(images, len(starts)))
        padding = self._context.rows - 1
        self._context.add_text([ids[kept:], *[[]] * padding])
        return answers_to(self._context, [ids, *[[]] * padding], [sampling] * (1 + padding), self._processor.tokenizer)


def _as_turn(question: object) -> object:
    """A question as `as_conversation` takes it. Raises ValueError when it is neither text nor parts."""
    if isinstance(question, str):
        return question
    if isinstance(question, list | tuple):
        return [{"role": "user", "content": question}]
    raise ValueError(f"the question is of type {type(question).__name__}; it must be a string, or a list of parts")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(np.array(a[:length]) != np.array(b[:length]))
    return int(different[0]) if len(different) else length
