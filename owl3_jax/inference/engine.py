"""Prompts in, answers out: batches of any prompts over a few compiled programs."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from owl3_jax.batch import Batch
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.answers import Answer, Answers
from owl3_jax.inference.beam_answers import BeamAnswers, answers_to
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.memory import OutOfMemory, explain_out_of_memory
from owl3_jax.inference.prompt_sizes import BatchSize, PromptSize
from owl3_jax.inference.runtime import Runtime, fetch
from owl3_jax.inference.sampling import Sampling
from owl3_jax.processing.processor import Prepared, Sample
from owl3_jax.processing.tokenizer import ChatTokenizer

Prompt = Prepared | Sample  # with `Prepared`, images are decoded a few at a time
Advance = Callable[[int, int], None]  # takes the images just read, and the number of all


def ignore_progress(images: int, total: int) -> None:
    """An `Advance` that shows nothing."""


class Engine:
    """Answers prompts with one set of parameters. Holds no prompt: only compiled programs and the feature cache last."""

    def __init__(self, runtime: Runtime, tokenizer: ChatTokenizer) -> None:
        self.runtime, self._tokenizer = runtime, tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        advance: Advance = ignore_progress,
        size: BatchSize | None = None,
    ) -> list[list[Answer]]:
        """The answers to each prompt, `n` of them, best first if they come from beams.

        Args:
            prompts: read together as the rows of one batch; texts and numbers of images may differ.
            sampling: for all prompts or for each; `n` and `num_beams` are the same for all.
            advance: called after every few images, with how many these were and how many there are in all.
            size: what the batch is padded to, so that all batches of that size share their programs (but the vision tower,
                which has sizes of its own); its rows must be a multiple of the mesh's. By default the nearest of a few sizes.

        Raises:
            ValueError: a prompt has no token, or more than the model has positions; samplings differ in `n` or
                `num_beams`; the prompts don't fit `size`.
            OutOfMemory: the caches would not fit, and the message says how much they need; or memory ran out
                during the computation.
        """
        samplings = _for_each(sampling, len(prompts))
        if not prompts:
            return []
        with giving_memory_back(self.runtime):
            begun = self._begin(prompts, samplings, advance, size)
            with self.runtime.clock.stage("decode"):
                answers = begun.run()
        n = samplings[0].n
        return [answers[row * n : (row + 1) * n] for row in range(len(prompts))]

    def stream(self, prompt: Prompt, sampling: Sampling, *, advance: Advance = ignore_progress) -> Iterator[str]:
        """The answer to one prompt as it comes, in pieces that never split a character. Closing it frees its caches.

        Raises what `generate` does, and ValueError for `n` above 1 and for `logprobs`.
        """
        check_one_answer(sampling)
        with giving_memory_back(self.runtime):
            for piece, *_ in self._begin([prompt], [sampling], advance).stream():  # other rows are padding
                if piece:
                    yield piece

    def _begin(
        self, prompts: Sequence[Prompt], samplings: list[Sampling], advance: Advance, size: BatchSize | None = None
    ) -> Answers | BeamAnswers:
        """The answers to `prompts`, followed by those of rows of padding."""
        for index, prompt in enumerate(prompts):
            check_length(len(prompt.input_ids), self.runtime.config.max_position_embeddings, f"prompt {index}")
        ids = [prompt.input_ids.tolist() for prompt in prompts]
        size = self._size(prompts, size)
        padding = size.rows - len(prompts)
        context = Context.empty(
            self.runtime,
            size.rows,
            images=size.row.images,
            tokens=buckets.prefill_slots(size.row.tokens),
            new_tokens=max(room_for_answer(self.runtime, *each) for each in zip(ids, samplings, strict=True)),
            samples=max(samplings[0].n, samplings[0].num_beams),
        )
        total = sum(len(prompt.image_starts) for prompt in prompts)
        new = [new_images(row, prompt) for row, prompt in enumerate(prompts)]
        context.add_images(new, lambda images: advance(images, total))
        ids += [[]] * padding
        with self.runtime.clock.stage("prefill") as computed:
            context.add_text(ids, size.row.tokens)
            computed.append(context.last)
        return answers_to(context, ids, [*samplings, *samplings[:1] * padding], self._tokenizer)

    def _size(self, prompts: Sequence[Prompt], wanted: BatchSize | None) -> BatchSize:
        """The size of the batch: the one that was requested, or the nearest. Raises ValueError when the prompts don't fit."""
        row = functools.reduce(PromptSize.union, map(prompt_size, prompts))
        if wanted is None:
            return BatchSize(self.runtime.rows(len(prompts)), row)
        if len(prompts) > wanted.rows or not wanted.row.fits(row):
            needed = f"{len(prompts)} prompts of up to {row.tokens} tokens and {row.images} images"
            given = f"{wanted.rows} rows of {wanted.row.tokens} tokens and {wanted.row.images} images"
            raise ValueError(f"{needed} do not fit into the requested batch size, {given}")
        return wanted


@contextlib.contextmanager
def giving_memory_back(runtime: Runtime) -> Iterator[None]:
    """As `explain_out_of_memory`; also empties the feature cache, which may then hold features that were never computed."""
    try:
        with explain_out_of_memory():
            yield
    except OutOfMemory:
        runtime.feature_cache.clear()
        raise


def forward(runtime: Runtime, prompt: Prompt) -> Float32[np.ndarray, "T V"]:
    """Logits of the token after each position of one prompt; all of it is computed at once, without caches.

    Raises ValueError when the model has fewer positions, and OutOfMemory.
    """
    most = runtime.config.max_position_embeddings
    if len(prompt.input_ids) > most:
        raise ValueError(
            f"the sample has {len(prompt.input_ids)} tokens, the model has {most} positions (max_position_embeddings)"
        )
    T, I, side = len(prompt.input_ids), len(prompt.image_starts), runtime.config.vision.image_size
    pixels = np.stack(list(new_images(0, prompt).views)) if I else np.zeros((0, side, side, 3), np.uint8)
    ids = lambda values: np.asarray(values, np.int32)[None]
    batch = Batch(ids(prompt.input_ids), ids(range(T)), ids([1] * T), pixels[None], ids(prompt.image_starts), ids([1] * I))
    with explain_out_of_memory("use fewer images, or a mesh with more devices; `Engine` reads images a few at a time"):
        logits: Float32[np.ndarray, "1 T V"] = fetch(runtime.run_model(programs.logits, batch, positions=T))
    return logits[0]


def prompt_size(prompt: Prompt) -> PromptSize:
    """What a row needs to hold a prompt."""
    return PromptSize(len(prompt.input_ids), len(prompt.image_starts))


def new_images(row: int, prompt: Prompt) -> NewImages:
    """The images of a prompt, for `Context.add_images`."""
    views = prompt.views() if isinstance(prompt, Prepared) else prompt.pixel_values
    return NewImages(row, prompt.image_starts.tolist(), views)


def check_length(tokens: int, most: int, name: str) -> None:
    """Raises ValueError when a prompt of so many tokens leaves no room for an answer in a model of `most` positions."""
    if tokens == 0:
        raise ValueError(f"{name} has no tokens")
    if tokens >= most:
        raise ValueError(
            f"{name} has {tokens} tokens, the model has {most} positions (max_position_embeddings); use fewer images, without "
            "crops, fewer frames of a video, or less text"
        )


def check_one_answer(sampling: Sampling) -> None:
    """Raises ValueError for what a stream of text cannot give: several answers, and log-probabilities."""
    if sampling.n > 1:
        raise ValueError(f"only one answer can be streamed, got n {sampling.n}; use Engine.generate for several")
    if sampling.logprobs:
        raise ValueError("a stream gives text without log-probabilities; use Engine.generate, whose answers have them")


def room_for_answer(runtime: Runtime, ids: Sequence[int], sampling: Sampling) -> int:
    """Most tokens that an answer can have: as many as are requested and the model has positions for."""
    return min(sampling.max_new_tokens, runtime.config.max_position_embeddings - len(ids))


def _for_each(sampling: Sampling | Sequence[Sampling], prompts: int) -> list[Sampling]:
    samplings = [sampling] * prompts if isinstance(sampling, Sampling) else list(sampling)
    if len(samplings) != prompts:
        raise ValueError(f"there are {prompts} prompts, but {len(samplings)} samplings")
    if len({(s.n, s.num_beams) for s in samplings}) > 1:
        raise ValueError("the prompts of one batch must have the same n and num_beams")
    return samplings
