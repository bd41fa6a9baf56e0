"""The cached prompts of a batch: what has been read so far, on the device, and what can still be added to it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Int64

from owl3_jax.inference import buckets, programs
from owl3_jax.inference.batched import batched
from owl3_jax.inference.caches import append_text, empty_images, empty_text, grow_images, grow_text, text_bytes
from owl3_jax.inference.choose import SamplingOps
from owl3_jax.inference.memory import check_fits
from owl3_jax.inference.runtime import Runtime, View, fetch
from owl3_jax.models.qwen2 import Images, Text, TextCache


class NewImages(NamedTuple):
    """Images of one row, to be read in order."""

    row: int
    positions: Sequence[int]  # of the first token of each placeholder
    views: Iterable[View]  # one for each position; a stream is read a few at a time


@dataclasses.dataclass
class Context:
    """Both caches of B rows. Rows may have different numbers of tokens and images.

    A position's slot in the text cache is the same for all rows: where a row has no token it holds padding.
    """

    runtime: Runtime
    images: Images
    text: TextCache
    last: Float[Array, "B E"]  # hidden state of each row's last position
    slots: int  # of the text cache that are written
    tokens: Int64[np.ndarray, " B"]  # positions of each row
    image_counts: Int64[np.ndarray, " B"]

    @classmethod
    def empty(
        cls, runtime: Runtime, rows: int, *, images: int, tokens: int, new_tokens: int = 0, samples: int = 1
    ) -> "Context":
        """Room for `rows` rows of at most `images` images and `tokens` positions, padding of prefill included.

        Raises OutOfMemory when the caches would not fit, including those of `samples` answers of `new_tokens` to each row.
        """
        config, compute = runtime.config, runtime.compute
        blocks, tokens = runtime.image_blocks(images), buckets.text_slots(tokens)
        images = sum(blocks)
        needed = runtime.image_bytes(rows, images) + text_bytes(config, compute, rows, tokens)
        answer = buckets.text_slots(new_tokens) if new_tokens else 0
        needed += text_bytes(config, compute, rows * samples, answer)
        what = f"the caches of {rows} rows of {tokens} tokens and {images} images, with {samples} x {answer} tokens of answers,"
        check_fits(needed, what, runtime.devices)
        return cls(
            runtime,
            runtime.run(empty_images, config, compute, rows, blocks),
            runtime.run(empty_text, config, compute, rows, tokens),
            jnp.zeros((rows, config.hidden_size), compute.dtype),
            0,
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
        )

    @property
    def rows(self) -> int:
        """B of the glossary."""
        return len(self.tokens)

    def reserve(self, *, images: int, tokens: int) -> None:
        """Makes room for `images` more images and `tokens` more positions in every row.

        Raises OutOfMemory when the new caches would not fit in addition to the old ones.
        """
        blocks = self.runtime.image_blocks(int(self.image_counts.max()) + images)
        tokens = buckets.text_slots(self.slots + tokens)
        grow_by_images, grow_by_text = sum(blocks) > self.images.positions.shape[1], tokens > self.text.positions.shape[1]
        config, compute = self.runtime.config, self.runtime.compute
        needed = self.runtime.image_bytes(self.rows, sum(blocks)) if grow_by_images else 0
        needed += text_bytes(config, compute, self.rows, tokens) if grow_by_text else 0
        check_fits(needed, f"caches of {tokens} tokens and {sum(blocks)} images", self.runtime.devices)
        if grow_by_images:
            self.images = self.runtime.run(grow_images, self.images, blocks)
        if grow_by_text:
            self.text = self.runtime.run(grow_text, self.text, tokens)

    def add_images(self, new: Sequence[NewImages], advance: Callable[[int], None] = lambda images: None) -> None:
        """Encodes images and writes their keys and values, a few at a time: a stream is never in memory as a whole.

        Raises ValueError when a row has fewer views than positions.
        """
        groups, clock = batched(self._places(new), self.runtime.vision_batch_size), self.runtime.clock
        while True:
            with clock.stage("media"):
                group = next(groups, None)
            if group is None:
                return
            with clock.stage("vision") as computed:
                size = self.runtime.encoder_batch(len(group))
                features = self.runtime.features([view for _, view in group], size)
                places = np.full((3, size), self.rows, np.int32)  # a row that does not exist: not stored
                places[:, : len(group)] = np.array([place for place, _ in group], np.int32).T
                self._store(features, programs.Places(*places))
                computed.append(self.images)
            advance(len(group))

    def add_features(self, row: int, positions: Sequence[int], features: Iterable[Float[Array, "_ L E"]]) -> None:
        """As `add_images`, for images that are encoded already, in chunks."""
        rest = iter(positions)
        for chunk in features:
            slots = self.image_counts[row] + np.arange(len(chunk))
            here = np.array(list(itertools.islice(rest, len(chunk))))
            self._store(chunk, programs.Places(*(x.astype(np.int32) for x in (np.full(len(chunk), row), slots, here))))
            self.image_counts[row] += len(chunk)

    def add_text(self, new: Sequence[Sequence[int]], padded: int = 0) -> None:
        """Prefills further tokens of every row (possibly none for some rows), chunk by chunk.

        The chunks are those of `padded` tokens if the longest row has fewer; chunks that would be all padding are left out.
        """
        longest = max(map(len, new))
        start = 0
        for length in buckets.prefill_chunks(max(longest, padded)):
            if 0 < longest <= start:
                break
            text = _pad_text([ids[start : start + length] for ids in new], self.tokens, length)
            arguments = (text, self.images, self.text, self.last)
            self.last, self.text = self.runtime.run_model(programs.prefill, *arguments, positions=length, rows=self.rows)
            self.tokens += (text.segment_ids != 0).sum(axis=1)
            self.slots += length
            start += length

    def begin(
        self,
        settings: programs.Settings,
        ops: SamplingOps,
        *,
        capacity: int,
        prompts: Sequence[Sequence[int]] = (),
    ) -> programs.Decoding:
        """The first tokens of the answers, with room for `capacity`; see `programs.begin`.

        `prompts` are all tokens of each row, read for the repetition penalty.
        """
        inputs = (self.last, self.tokens.astype(np.int32), seen_tokens(prompts, self.rows, ops), settings)
        state: programs.Decoding = self.runtime.run_model(programs.begin, *inputs, ops=ops, capacity=capacity)
        return state

    def decode(self, state: programs.Decoding, settings: programs.Settings, ops: SamplingOps, limit: int) -> programs.Decoding:
        """Continues answers of `begin` until all are done or have `limit` tokens."""
        inputs = (state, self.images, self.text, settings, np.int32(limit))
        sizes = {"rows": self.rows, "positions": len(settings.max_new_tokens) // self.rows}  # answers share their row's images
        further: programs.Decoding = self.runtime.run_model(programs.decode, *inputs, ops=ops, **sizes)
        return further

    def absorb(self, state: programs.Decoding) -> Int[np.ndarray, " B"]:
        """Makes answers, one to each row, part of the context; returns how many tokens of each: the newest is not read.

        There must be room for all that `begin` made room for.
        """
        fed = (fetch(state.cache.segment_ids) != 0).sum(axis=1)
        self.text = self.runtime.run(append_text, self.text, state.cache)
        self.slots += int(state.cache.length)
        self.tokens = self.tokens + fed
        return fed

    def forget_text(self, kept: int) -> None:
        """Forgets the positions from `kept` on, of every row; their slots become padding."""
        segment_ids = jnp.where(self.text.positions >= kept, 0, self.text.segment_ids)
        self.text = self.text._replace(segment_ids=segment_ids)
        self.tokens = np.minimum(self.tokens, kept)

    def forget_images(self, kept: int) -> None:
        """Forgets the images from number `kept` on, of every row; their slots are free again."""
        is_kept = jnp.arange(self.images.segment_ids.shape[1]) < kept
        self.images = self.images._replace(segment_ids=jnp.where(is_kept, self.images.segment_ids, 0))
        self.image_counts = np.minimum(self.image_counts, kept)

    def _store(self, features: Float[Array, "J L E"], places: programs.Places) -> None:
        """Writes images to the blocks that they belong to."""
        images, blocks = self.images, list(self.images.blocks)
        positions, segment_ids = self.runtime.run(programs.mark_images, images.positions, images.segment_ids, places)
        number, slots = np.divmod(places.slots, blocks[0].images)
        for touched in sorted(set(number[places.rows < self.rows].tolist())):
            rows = np.where(number == touched, places.rows, np.int32(self.rows))
            inside = places._replace(rows=rows, slots=slots)
            blocks[touched] = self.runtime.run_model(programs.store, blocks[touched], features, inside)
        self.images = Images(tuple(blocks), positions, segment_ids)

    def _places(self, new: Sequence[NewImages]) -> Iterator[tuple[tuple[int, int, int], View]]:
        for row, positions, views in new:
            for position, view in itertools.zip_longest(positions, views):
                if position is None or view is None:
                    raise ValueError(f"row {row} has {len(positions)} image placeholders, but not as many images")
                yield (row, int(self.image_counts[row]), position), view
                self.image_counts[row] += 1


def seen_tokens(prompts: Sequence[Sequence[int]], rows: int, ops: SamplingOps) -> Int32[np.ndarray, "B T"]:
    """The prompts' tokens for the repetition penalty, padded with -1; T is 0 if there is no penalty."""
    if not ops.penalty:
        return np.zeros((rows, 0), np.int32)
    padded = np.full((rows, buckets.text_slots(max(map(len, prompts)))), -1, np.int32)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = ids
    return padded


def _pad_text(ids: Sequence[Sequence[int]], positions: Int64[np.ndarray, " B"], length: int) -> Text:
    """The rows' next tokens as [B, `length`], padded on the right."""
    arrays = np.zeros((3, len(ids), length), np.int32)
    for row, tokens in enumerate(ids):
        arrays[0, row, : len(tokens)] = tokens
        arrays[2, row, : len(tokens)] = 1
    arrays[1] = positions[:, None] + np.arange(length)
    return Text(*arrays)
