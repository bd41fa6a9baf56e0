"""The compiled programs of answers whose keys and values are in pools of pages (`owl3_jax.attention.pages`).

store    image features -> pages of the pool of images
read     more text of some rows -> the pool of text, and the logits after it: a chunk of one prompt, or one token of each answer
choose   logits -> the next token of each row

Nothing of a row is kept on the device but its pages: rows come and go between two calls. As in `owl3_jax.inference.programs`,
each compiles once for each shape of its arguments; the pool that a program writes to is donated.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.attention.page_placement import read_page, write_pages
from owl3_jax.attention.pages import Pages, PageTable
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.inference.choose import SamplingOps, SamplingRows, choose, log_probability, mark_seen
from owl3_jax.inference.jitted import Jitted
from owl3_jax.models.hyper import image_token_slots
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.models.qwen2 import PagedContext, PageSlots, Text
from owl3_jax.nn.quantized import quantize_like, zero_vectors
from owl3_jax.params import Params
from owl3_jax.sharding import constrain

_AXES = (None, "page", "act_kv_heads", None, "head_dim")


class Rows(NamedTuple):
    """What rows of text follow, and where their own keys and values go."""

    text: PageTable
    slots: PageSlots
    images: PageTable
    image_positions: Int[Array, "B I"]  # of the placeholders' first tokens


class Choices(NamedTuple):
    """How the next tokens are chosen. The tokens before are padded with -1, and not read where no penalty needs them."""

    sampling: SamplingRows
    steps: Int[Array, " R"]  # tokens of each answer so far
    stop_ids: Int[Array, " X"]
    prompt: Int[Array, "R T"]
    answer: Int[Array, "R A"]
    presence_penalty: Float[Array, " R"]
    frequency_penalty: Float[Array, " R"]


class Chosen(NamedTuple):
    """Tokens, and log-probabilities by the model alone."""

    tokens: Int[Array, " R"]
    logprobs: Float[Array, " R"] | None
    top_tokens: Int[Array, "R top"] | None  # the likeliest, best first
    top_logprobs: Float[Array, "R top"] | None


def pool_compute(compute: ComputeConfig, platform: str) -> ComputeConfig:
    """`compute` as pools hold keys and values: on a CPU in float32 in place of 16 bits, which loses nothing.

    There XLA converts the whole of a pool of 16-bit floats, and back, for each token that is written to it.
    """
    is_short = jnp.dtype(compute.dtype).itemsize < jnp.dtype(jnp.float32).itemsize
    return dataclasses.replace(compute, dtype="float32") if platform == "cpu" and is_short else compute


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_text_pages(config: ModelConfig, compute: ComputeConfig, pages: int, tokens: int) -> Pages:
    """A pool of P = `pages` pages of L = `tokens` tokens of text."""
    return _empty((config.num_hidden_layers, pages, config.num_key_value_heads, tokens, config.head_dim), compute)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty_image_pages(config: ModelConfig, compute: ComputeConfig, pages: int) -> Pages:
    """A pool of P = `pages` images."""
    K, L, D = config.num_key_value_heads, image_token_slots(config), config.head_dim
    return _empty((len(config.hyper_layers), pages, K, L, D), compute)


def _empty(shape: tuple[int, ...], compute: ComputeConfig) -> Pages:
    pages = Pages(zero_vectors(shape, compute), zero_vectors(shape, compute))  # separate buffers, to be donated
    split: Pages = jax.tree.map(lambda x: constrain(x, _AXES[: x.ndim]), pages)  # scales lack the last dim
    return split


@functools.partial(Jitted, static_argnames="model", donate_argnames="pages")
def store(model: Owl3, params: Params, pages: Pages, features: Float[Array, "J L E"], numbers: Int[Array, " J"]) -> Pages:
    """The pool of images with J more images; those with a number outside the pool are padding, and not stored."""
    unrotated = jnp.full((1, len(numbers)), -model.config.image_rope_offset, jnp.int32)
    new = apply(model, params, "image_cache", features[None], unrotated)  # [M, 1, K, J, L, D]
    by_image = (jnp.moveaxis(x[:, 0], 2, 1) for x in new)
    return Pages(*(write_pages(old, quantize_like(x, old), numbers) for old, x in zip(pages, by_image, strict=True)))


@functools.partial(jax.jit, donate_argnums=0)
def put_page(pages: Pages, page: Pages, number: Int[Array, ""]) -> Pages:
    """The pool with one page, [M, 1, K, L, D], that was kept elsewhere."""
    return Pages(*(write_pages(old, x, number[None]) for old, x in zip(pages, page, strict=True)))


@jax.jit
def take_page(pages: Pages, number: Int[Array, ""]) -> Pages:
    """One page of the pool, [M, 1, K, L, D]."""
    return Pages(*(read_page(x, number) for x in pages))


@functools.partial(Jitted, static_argnames="model", donate_argnames="text_pages")
def read(
    model: Owl3, params: Params, text_pages: Pages, image_pages: Pages, text: Text, rows: Rows
) -> tuple[Float[Array, "B V"], Pages]:
    """Logits after the last token of each row's text, which is padded on the right with segment 0, and the pool of text."""
    context = PagedContext(text_pages, rows.text, rows.slots, image_pages, rows.images, rows.image_positions)
    x, written = apply(model, params, "extend_pages", text, context)
    last = jnp.maximum((text.segment_ids != 0).sum(axis=1) - 1, 0)
    newest = jnp.take_along_axis(x, last[:, None, None], axis=1)
    logits: Array = apply(model, params, "logits", newest)[:, 0]
    return logits, written


@functools.partial(jax.jit, static_argnames=("ops", "counts", "top"))
def choose_next(logits: Float[Array, "R V"], choices: Choices, *, ops: SamplingOps, counts: bool, top: int) -> Chosen:
    """The next token of each row.

    Args:
        logits: after the last token of each.
        choices: how.
        ops: at least what the rows need.
        counts: whether any row has a presence or frequency penalty.
        top: how many of the likeliest tokens are reported.
    """
    R, V = logits.shape
    nothing = jnp.zeros((R, V), bool)
    in_answer = choices.answer >= 0
    seen = None
    if ops.penalty:
        seen = mark_seen(mark_seen(nothing, choices.prompt, choices.prompt >= 0), choices.answer, in_answer)
    scores = logits
    if counts:
        times = jnp.zeros((R, V), jnp.float32).at[jnp.arange(R)[:, None], jnp.where(in_answer, choices.answer, V)]
        count = times.add(1.0, mode="drop")
        presence, frequency = choices.presence_penalty[:, None], choices.frequency_penalty[:, None]
        scores = logits - frequency * count - presence * (count > 0)
    without_logprobs = ops._replace(logprobs=False)
    tokens, _ = choose(scores, seen, choices.steps, choices.stop_ids, choices.sampling, without_logprobs)
    if not ops.logprobs:
        return Chosen(tokens, None, None, None)
    logprobs = log_probability(logits, tokens)
    if not top:
        return Chosen(tokens, logprobs, None, None)
    best, likeliest = jax.lax.top_k(logits, top)
    return Chosen(tokens, logprobs, likeliest, best - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
