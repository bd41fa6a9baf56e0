"""Greedy tokens for a whole batch: what evaluation and parity checks ask for. `Engine` answers everything else."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from owl3_jax.batch import Batch
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.context import Context, NewImages
from owl3_jax.inference.runtime import Runtime
from owl3_jax.inference.sampling import Sampling


def generate(runtime: Runtime, batch: Batch, *, max_new_tokens: int, stop_ids: Sequence[int]) -> np.ndarray:
    """The most likely continuation of each row: [B, max_new_tokens] int32, zeros after the first stop id.

    Rows hold one prompt each (segment 1), padded on the right, with any number of images. The stop id itself is part of the
    answer. The number of rows must suit the runtime's mesh.
    """
    if int(np.max(batch.segment_ids)) > 1:
        raise ValueError("generate takes one prompt a row, but this batch packs several (segment ids above 1)")
    context = read_batch(runtime, batch, max_new_tokens)
    rows = [Sampling(max_new_tokens=max_new_tokens)] * context.rows
    limits = jnp.full(context.rows, max_new_tokens, jnp.int32)
    settings = programs.Settings(SamplingRows.of(rows), limits, jnp.asarray(stop_ids, jnp.int32))
    ops = SamplingOps.of(rows)
    state = context.begin(settings, ops, capacity=max_new_tokens)
    done = context.decode(state, settings, ops, max_new_tokens)
    return np.asarray(done.answer)


def read_batch(runtime: Runtime, batch: Batch, max_new_tokens: int) -> Context:
    """A context that has read every row of a batch, with room for answers."""
    rows, T = batch.tokens.shape
    context = Context.empty(
        runtime, rows, images=batch.image_positions.shape[1], tokens=buckets.prefill_slots(T), new_tokens=max_new_tokens
    )
    context.add_images([_images_of(batch, row) for row in range(rows)])
    context.add_text([np.asarray(batch.tokens[row])[np.asarray(batch.segment_ids[row]) != 0].tolist() for row in range(rows)])
    return context


def _images_of(batch: Batch, row: int) -> NewImages:
    real = np.asarray(batch.image_segment_ids[row]) != 0
    return NewImages(row, np.asarray(batch.image_positions[row])[real].tolist(), np.asarray(batch.pixels[row])[real])
