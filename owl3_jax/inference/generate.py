"""Greedy generation with text and image caches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from owl3_jax.batch import Batch
from owl3_jax.models.owl3 import Owl3
from owl3_jax.models.qwen2 import Images, Text, TextCache

Params = dict[str, Any]


def generate(model: Owl3, params: Params, batch: Batch, *, max_new_tokens: int, stop_ids: Sequence[int]) -> np.ndarray:
    """The most likely continuation of each row: [B, max_new_tokens] int32, zeros after the first stop id.

    Rows hold one prompt each (segment 1), padded on the right, with any number of images. The stop id
    itself is part of the answer. Compiles once per shape of the batch.
    """
    if int(np.max(batch.segment_ids)) > 1:
        raise ValueError("generate takes one prompt a row, but this batch packs several (segment ids above 1)")
    return np.asarray(_generate(model, params, batch, jnp.asarray(stop_ids, jnp.int32), max_new_tokens))


class _Decoding(NamedTuple):
    """State of the loop; `token` is the newest, already written to `answer`."""

    written: Int[Array, ""]  # tokens of the answer so far
    token: Int[Array, " B"]
    done: Bool[Array, " B"]
    answer: Int[Array, "B A"]
    cache: TextCache


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens"))
def _generate(model: Owl3, params: Params, batch: Batch, stop_ids: Int[Array, " X"], max_new_tokens: int) -> Int[Array, "B A"]:
    apply: Callable[..., Any] = functools.partial(model.apply, {"params": params})
    B, T = batch.tokens.shape
    x, images, cache = apply(batch, T + max_new_tokens, method="prefill")
    lengths = (batch.segment_ids != 0).sum(axis=1)  # [B]
    last = x[jnp.arange(B), lengths - 1][:, None]  # [B, 1, E]
    first = _most_likely(apply(last, method="logits"))
    answer = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(first)
    start = _Decoding(jnp.ones((), jnp.int32), first, jnp.isin(first, stop_ids), answer, cache)
    return jax.lax.while_loop(
        lambda state: (state.written < max_new_tokens) & ~state.done.all(),
        lambda state: _decode(apply, images, lengths, stop_ids, state),
        start,
    ).answer


def _decode(
    apply: Callable[..., Any], images: Images, lengths: Int[Array, " B"], stop_ids: Int[Array, " X"], state: _Decoding
) -> _Decoding:
    positions = (lengths + state.written - 1)[:, None]  # of the newest token: padding is not counted
    text = Text(state.token[:, None], positions, jnp.ones_like(positions))
    logits, cache = apply(text, images, state.cache, method="decode")
    token = jnp.where(state.done, 0, _most_likely(logits))
    answer = jax.lax.dynamic_update_slice(state.answer, token[:, None], (0, state.written))
    return _Decoding(state.written + 1, token, state.done | jnp.isin(token, stop_ids), answer, cache)


def _most_likely(logits: Float[Array, "B 1 V"]) -> Int[Array, " B"]:
    return logits[:, 0].argmax(axis=-1).astype(jnp.int32)
