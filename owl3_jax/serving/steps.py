"""Calls of the compiled programs for the requests of one step: what they read, in padded arrays, and what comes of it."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from owl3_jax.attention.pages import PageTable
from owl3_jax.inference import buckets, paged_programs
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.paged_programs import Choices, Chosen, Rows
from owl3_jax.inference.runtime import Runtime, fetch
from owl3_jax.models.qwen2 import PageSlots, Text
from owl3_jax.serving.generation import TOP_LOGPROBS, Token
from owl3_jax.serving.pools import Pools
from owl3_jax.serving.request import Request

_NARROWEST_TABLE = 16

# What the programs that choose tokens can do: three kinds, so that all are compiled before the first request. A minimum of
# tokens costs nothing, so that all have it.
_LIKELIEST = SamplingOps(sample=False, penalty=False, minimum=True, logprobs=False)
_SAMPLED = _LIKELIEST._replace(sample=True)
_EVERYTHING = SamplingOps(sample=True, penalty=True, minimum=True, logprobs=True)


class Steps:
    """The programs of one server. Not for several threads."""

    def __init__(self, runtime: Runtime, pools: Pools, stop_ids: Sequence[int], *, text_width: int, image_width: int) -> None:
        """`text_width` and `image_width`: the most pages of a request."""
        self._runtime, self._pools = runtime, pools
        self._stop_ids = np.array(stop_ids, np.int32)
        self._text_widths, self._image_widths = (_widths(most, runtime.platform) for most in (text_width, image_width))
        self._widest = self._text_widths[-1], self._image_widths[-1]
        self._rows: tuple[tuple[object, ...], SamplingRows] | None = None

    @property
    def images_at_once(self) -> int:
        """That the vision tower takes."""
        return self._runtime.vision_batch_size

    def warm_up(self, rows: int) -> Iterator[str]:
        """Compiles all programs that requests may need, for at most so many answers together. Says what each step compiles."""
        side = self._runtime.config.vision.image_size
        self._pools.warm_up()
        for size in sorted({self._runtime.encoder_batch(images) for images in range(1, self.images_at_once + 1)}):
            yield f"vision, {size} images"
            self._encode([np.zeros((side, side, 3), np.uint8)] * size, [self._pools.sizes.image_pages] * size)
        for length in sorted({self._chunk_size(tokens) for tokens in range(1, buckets.PREFILL_CHUNK + 1)}):
            yield f"{length} tokens of a prompt"
            self._call([], [], 1, length, *self._widest)
        for text in self._text_widths:
            for images in self._image_widths:
                for size in sorted({buckets.rows(answers) for answers in range(1, rows + 1)}):
                    yield f"a token of {size} answers, tables of {text} and {images} pages"
                    logits = self._call([], [], size, 1, text, images)
                    for ops in (_LIKELIEST, _SAMPLED, _EVERYTHING):
                        self._choose([], logits, ops, text)

    def encode(self, images: Sequence[tuple[UInt8[np.ndarray, "S S 3"], int]]) -> None:
        """Fills pages with images, at most `images_at_once`."""
        self._encode([pixels for pixels, _ in images], [page for _, page in images])

    def _encode(self, pixels: Sequence[UInt8[np.ndarray, "S S 3"]], pages: Sequence[int]) -> None:
        size = self._runtime.encoder_batch(len(pixels))
        features = self._runtime.features(pixels, size)
        numbers = np.full(size, self._pools.sizes.image_pages, np.int32)  # beyond the pool: padding
        numbers[: len(pages)] = pages
        self._pools.images = self._runtime.run_model(paged_programs.store, self._pools.images, features, numbers)

    def read(self, requests: Sequence[Request], tokens: Sequence[Sequence[int]]) -> Float[Array, "B V"]:
        """Reads further tokens of each request, and gives the logits after them; rows after those of the requests are padding.

        They follow the `read` ones of a request, which does not change. Pages that are shared and written are left as they are.
        """
        longest = max(map(len, tokens))
        if longest > 1:  # pages beyond those that a row shows cost a chunk of a prompt nothing
            return self._call(requests, tokens, buckets.rows(len(requests)), self._chunk_size(longest), *self._widest)
        text = max(self._pools.text_pages(request.read + len(new)) for request, new in zip(requests, tokens, strict=True))
        images = max(len(request.image_keys) for request in requests)
        widths = _fitting(self._text_widths, text), _fitting(self._image_widths, images)
        return self._call(requests, tokens, buckets.rows(len(requests)), 1, *widths)

    def _call(
        self,
        requests: Sequence[Request],
        tokens: Sequence[Sequence[int]],
        rows: int,
        length: int,
        text_width: int,
        image_width: int,
    ) -> Float[Array, "B V"]:
        ids, segment_ids = np.zeros((2, rows, length), np.int32)
        pages = np.zeros((rows, text_width), np.int32)
        image_pages, positions, image_tokens = np.zeros((3, rows, image_width), np.int32)
        starts = np.zeros(rows, np.int32)
        keeps = np.zeros((rows, text_width), bool)
        for row, (request, new) in enumerate(zip(requests, tokens, strict=True)):
            table = request.table(text_width, image_width)
            ids[row, : len(new)], segment_ids[row, : len(new)] = new, 1
            pages[row], image_pages[row], positions[row] = table.text, table.images, table.positions
            image_tokens[row, : table.shown] = self._runtime.config.vision.tokens_per_image
            starts[row] = request.read
            if len(new) > 1 or not request.is_read:  # the page of an answer's token is never shared before it is full
                keeps[row] = self._is_written(request, text_width)
        size = self._pools.sizes.tokens_per_page
        places = starts[:, None] + np.arange(length, dtype=np.int32)
        page_of = np.minimum(places // size, text_width - 1)
        is_new = (segment_ids > 0) & ~np.take_along_axis(keeps, page_of, axis=1)
        targets = np.where(is_new, np.take_along_axis(pages, page_of, axis=1), self._pools.sizes.text_pages)
        written = np.clip(starts[:, None] - np.arange(text_width, dtype=np.int32) * size, 0, size)
        tables = PageTable._make([pages, written]), PageTable._make([image_pages, image_tokens])
        slots = PageSlots._make([targets.astype(np.int32), places % size])
        described = Rows._make([tables[0], slots, tables[1], positions])
        text = Text._make([ids, places, segment_ids])
        inputs = (self._pools.text, self._pools.images, text, described)
        logits, self._pools.text = self._runtime.run_paged(paged_programs.read, *inputs, positions=length, rows=rows)
        return logits

    def _chunk_size(self, tokens: int) -> int:
        """Positions that a chunk of so many tokens of a prompt is padded to: few sizes, so that few programs are compiled."""
        steps = 2 if self._runtime.platform == "cpu" else 1  # where padding costs as much as text
        return min(max(16, buckets.bucket(tokens, steps=steps)), buckets.PREFILL_CHUNK)

    def _is_written(self, request: Request, width: int) -> list[bool]:
        loan = request.loan
        assert loan is not None
        written = [self._pools.of_text.is_written(page) for page in loan.text[:width]]
        return written + [False] * (width - len(written))

    def choose(self, requests: Sequence[Request], logits: Float[Array, "B V"]) -> list[Token]:
        """The next token of each request."""
        generations = [request.generation for request in requests]
        ops = SamplingOps.of([request.sampling for request in requests])
        has_penalty = any(each.presence_penalty or each.frequency_penalty for each in generations)
        plain = _SAMPLED if ops.sample else _LIKELIEST
        ops = _EVERYTHING if has_penalty or ops.penalty or ops.logprobs else plain
        text = max(self._pools.text_pages(max(len(request.prompt), len(request.ids))) for request in requests)
        chosen = self._choose(requests, logits, ops, _fitting(self._text_widths, text))
        tokens, logprobs, top_tokens, top_logprobs = (None if x is None else fetch(x).tolist() for x in chosen)
        assert tokens is not None
        found = []
        for row, each in enumerate(generations):
            if not each.sampling.logprobs or logprobs is None or top_tokens is None or top_logprobs is None:
                found.append(Token(tokens[row]))
            else:
                best = tuple(zip(top_tokens[row], top_logprobs[row], strict=True))[: each.top_logprobs]
                found.append(Token(tokens[row], logprobs[row], best))
        return found

    def _choose(self, requests: Sequence[Request], logits: Float[Array, "B V"], ops: SamplingOps, text_width: int) -> Chosen:
        """`text_width`: pages that each of the prompts and answers would fit into."""
        rows, is_everything = len(logits), ops == _EVERYTHING
        tokens = text_width * self._pools.sizes.tokens_per_page if is_everything else 0
        column = lambda values: np.array([*values, *[0] * (rows - len(requests))], np.float32)
        prompts, answers = [request.prompt for request in requests], [request.ids for request in requests]
        choices = Choices._make(
            [
                self._sampling_rows(requests, rows),
                column(len(ids) for ids in answers).astype(np.int32),
                self._stop_ids,
                _padded(prompts, rows, tokens),
                _padded(answers, rows, tokens),
                column(request.generation.presence_penalty for request in requests),
                column(request.generation.frequency_penalty for request in requests),
            ]
        )
        top = min(TOP_LOGPROBS, logits.shape[1]) if is_everything else 0
        chosen: Chosen = self._runtime.run(
            functools.partial(paged_programs.choose_next, ops=ops, counts=is_everything, top=top), logits, choices
        )
        return chosen

    def _sampling_rows(self, requests: Sequence[Request], rows: int) -> SamplingRows:
        """The settings of the rows; made anew only when a request has come or gone."""
        key = (*requests, rows)
        if self._rows is None or self._rows[0] != key:
            self._rows = key, _sampling_rows(requests, rows)
        return self._rows[1]


def _sampling_rows(requests: Sequence[Request], rows: int) -> SamplingRows:
    padding = rows - len(requests)
    values = lambda name, empty: [*(getattr(request.sampling, name) for request in requests), *[empty] * padding]
    column = lambda name, empty, dtype: jnp.asarray(values(name, empty), dtype)
    keys = np.array([*(request.draws for request in requests), *[np.zeros(2, np.uint32)] * padding])
    return SamplingRows(
        temperature=column("temperature", 0, np.float32),
        top_p=column("top_p", 1, np.float32),
        min_p=column("min_p", 0, np.float32),
        repetition_penalty=column("repetition_penalty", 1, np.float32),
        top_k=column("top_k", 0, np.int32),
        min_new_tokens=column("min_new_tokens", 0, np.int32),
        keys=jax.random.wrap_key_data(jnp.asarray(keys), impl="threefry2x32"),
    )


def _padded(ids: Sequence[Sequence[int]], rows: int, width: int) -> Int32[np.ndarray, "R T"]:
    """Ids of each row, padded with -1; those that do not fit are left out."""
    padded = np.full((rows, width), -1, np.int32)
    for row, tokens in enumerate(ids):
        padded[row, : min(len(tokens), width)] = tokens[:width]
    return padded


def _widths(most: int, platform: str) -> list[int]:
    """Numbers of columns of a table of at most `most` pages. On a CPU columns that nobody needs cost nothing."""
    if platform == "cpu":
        return [most]
    widths = [most]
    while widths[0] >= 4 * _NARROWEST_TABLE:
        widths.insert(0, widths[0] // 4)
    return widths


def _fitting(widths: Sequence[int], pages: int) -> int:
    return next(width for width in widths if width >= pages)
