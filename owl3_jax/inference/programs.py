"""The compiled programs of inference. Each compiles once for each shape of its arguments; caches are donated.

logits      a whole batch, without caches
encode      pixels -> image features                       the vision tower, J images at a time
store       image features -> a block of the image cache   norm, `v_kv_proj` and RoPE of every hyper layer
prefill     text -> the text cache                         one chunk of every row
begin       hidden state of the last position -> the first token of the answers
decode      token after token, on the device, until all rows are done or a limit is reached
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from owl3_jax.batch import AnyArray, Batch
from owl3_jax.inference.caches import append_text, constrain_block, constrain_text
from owl3_jax.inference.choose import SamplingOps, SamplingRows, choose, mark_seen
from owl3_jax.inference.jitted import Jitted
from owl3_jax.models.hyper import ImageCache
from owl3_jax.models.owl3 import Outputs, Owl3, apply
from owl3_jax.models.qwen2 import Images, Text, TextCache
from owl3_jax.nn.stacks import stack_like
from owl3_jax.params import Params


class Places(NamedTuple):
    """Where images are stored. A row number outside the cache marks padding, which is not stored."""

    rows: AnyArray  # [J] int32
    slots: AnyArray  # [J] int32
    positions: AnyArray  # [J] int32, of the first token of the placeholder


class Settings(NamedTuple):
    """How the rows of a batch are answered."""

    sampling: SamplingRows
    max_new_tokens: Int[Array, " R"]
    stop_ids: Int[Array, " X"]


class Decoding(NamedTuple):
    """State of the answers. `token` is the newest one: written to `answer`, not yet in the cache."""

    written: Int[Array, ""]  # tokens of the longest answer so far
    token: Int[Array, " R"]
    positions: Int[Array, " R"]  # of `token`
    done: Bool[Array, " R"]
    answer: Int[Array, "R A"]  # zeros after the last token
    logprobs: Float[Array, "R A"] | None
    seen: Bool[Array, "R V"] | None  # tokens of prompt and answer, for the repetition penalty
    cache: TextCache  # of the answers alone


@functools.partial(Jitted, static_argnames="model")
def logits(model: Owl3, params: Params, batch: Batch) -> Float[Array, "B T V"]:
    """One forward pass without caches."""
    outputs: Outputs = apply(model, params, "__call__", batch)
    return outputs.logits


@functools.partial(Jitted, static_argnames="model")
def encode(model: Owl3, params: Params, pixels: Shaped[Array, "J S S 3"]) -> Float[Array, "J L E"]:
    """Image features of J images."""
    features: Array = apply(model, params, "encode_images", pixels[None])
    return features[0]


@functools.partial(Jitted, static_argnames="model", donate_argnames="block")
def store(model: Owl3, params: Params, block: ImageCache, features: Float[Array, "J L E"], places: Places) -> ImageCache:
    """One block of an image cache with J more images."""
    new = apply(model, params, "image_cache", features[None], places.positions[None])

    def write(old: Shaped[Array, "M B K I L *D"], x: Shaped[Array, "M 1 K J L *D"]) -> Shaped[Array, "M B K I L *D"]:
        # Two index arrays with a slice between them: J comes first.
        return old.at[:, places.rows, :, places.slots].set(jnp.moveaxis(x[:, 0], 2, 0), mode="drop")

    return constrain_block(
        ImageCache(*(jax.tree.map(write, old, stack_like(x, old)) for old, x in zip(block, new, strict=True)))
    )


@functools.partial(jax.jit, donate_argnums=(0, 1))
def mark_images(
    positions: Int[Array, "B I"], segment_ids: Int[Array, "B I"], places: Places
) -> tuple[Int[Array, "B I"], Int[Array, "B I"]]:
    """Positions and segments of an image cache with J more images."""
    at = (places.rows, places.slots)
    return positions.at[at].set(places.positions, mode="drop"), segment_ids.at[at].set(1, mode="drop")


@functools.partial(Jitted, static_argnames="model", donate_argnames=("past", "last"))
def prefill(
    model: Owl3, params: Params, text: Text, images: Images, past: TextCache, last: Float[Array, "B E"]
) -> tuple[Float[Array, "B E"], TextCache]:
    """`past` with one more chunk of text, and the hidden state of each row's last position so far.

    Rows that have ended before the chunk, or end within it, are padded on the right with segment 0.
    """
    chunk = TextCache.empty(model.config, model.compute, *text.tokens.shape)
    x, chunk = apply(model, params, "extend", text, images, chunk, past)
    tokens = (text.segment_ids != 0).sum(axis=1)  # [B], of the chunk
    newest = jnp.take_along_axis(x, jnp.maximum(tokens - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(tokens[:, None] > 0, newest, last), append_text(past, chunk)


@functools.partial(Jitted, static_argnames=("model", "ops", "capacity"))
def begin(
    model: Owl3,
    params: Params,
    last: Float[Array, "B E"],
    positions: Int[Array, " B"],
    prompt: Int[Array, "B T"],
    settings: Settings,
    *,
    ops: SamplingOps,
    capacity: int,
) -> Decoding:
    """The first token of each of R answers, n to each of B prompts, with room for A = `capacity` tokens.

    `positions` are those of the answers' first tokens; `prompt` (-1 is padding) counts as seen.
    """
    spread = functools.partial(jnp.repeat, repeats=settings.max_new_tokens.shape[0] // last.shape[0], axis=0)
    logits = spread(apply(model, params, "logits", last[:, None])[:, 0])
    R, V = logits.shape
    seen = mark_seen(jnp.zeros((R, V), bool), spread(prompt), spread(prompt) >= 0) if ops.penalty else None
    zero = jnp.zeros((), jnp.int32)
    start = Decoding(
        written=zero,
        token=jnp.zeros(R, jnp.int32),
        positions=spread(positions) - 1,
        done=settings.max_new_tokens <= 0,
        answer=jnp.zeros((R, capacity), jnp.int32),
        logprobs=jnp.zeros((R, capacity), jnp.float32) if ops.logprobs else None,
        seen=seen,
        cache=constrain_text(TextCache.empty(model.config, model.compute, R, capacity)),
    )
    return _write_token(start, logits, settings, ops)


@functools.partial(Jitted, static_argnames=("model", "ops"), donate_argnames="state")
def decode(
    model: Owl3,
    params: Params,
    state: Decoding,
    images: Images,
    past: TextCache,
    settings: Settings,
    limit: Int[Array, ""],
    *,
    ops: SamplingOps,
) -> Decoding:
    """Decodes until every row is done or the answers have `limit` tokens. Answers to one prompt share its row of `past`."""

    def step(state: Decoding) -> Decoding:
        # A finished row continues as padding, which no position sees.
        text = Text(state.token[:, None], state.positions[:, None], jnp.where(state.done, 0, 1)[:, None])
        x, cache = apply(model, params, "extend", text, images, state.cache, past)
        logits = apply(model, params, "logits", x)[:, 0]
        return _write_token(state._replace(cache=cache), logits, settings, ops)

    return jax.lax.while_loop(lambda state: (state.written < limit) & ~state.done.all(), step, state)


def _write_token(state: Decoding, logits: Float[Array, "R V"], settings: Settings, ops: SamplingOps) -> Decoding:
    token, logprob = choose(logits, state.seen, state.written, settings.stop_ids, settings.sampling, ops)
    token = jnp.where(state.done, 0, token)
    write = lambda old, new: jax.lax.dynamic_update_slice(old, new[:, None].astype(old.dtype), (0, state.written))
    stopped = jnp.isin(token, settings.stop_ids) | (state.written + 1 >= settings.max_new_tokens)
    return state._replace(
        written=state.written + 1,
        token=token,
        positions=state.positions + 1,
        done=state.done | stopped,
        answer=write(state.answer, token),
        logprobs=None if state.logprobs is None else write(state.logprobs, logprob),
        seen=None if state.seen is None else mark_seen(state.seen, token[:, None], ~state.done[:, None]),
    )
