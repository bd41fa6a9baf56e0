"""The next token of each row: pure and jittable. Rows may differ in their settings; the steps are in transformers' order."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from owl3_jax.inference.sampling import Sampling

_INFINITY = 0x7F800000  # the bits of float32's infinity
_DRAWN_TOGETHER = 512  # tokens of a block


class SamplingRows(NamedTuple):
    """The settings of each row of a batch, as arrays."""

    temperature: Float[Array, " R"]
    top_p: Float[Array, " R"]
    min_p: Float[Array, " R"]
    repetition_penalty: Float[Array, " R"]
    top_k: Int[Array, " R"]
    min_new_tokens: Int[Array, " R"]
    keys: Key[Array, " R"]

    @classmethod
    def of(cls, samplings: Sequence[Sampling], samples: Sequence[int] | None = None) -> "SamplingRows":
        """The settings of rows. `samples` numbers each row among the answers to its prompt (all 0 by default).

        What a row draws follows from its seed and its number alone, not from the batch.
        """
        column = lambda name, dtype: jnp.asarray([getattr(sampling, name) for sampling in samplings], dtype)
        floats = {name: column(name, np.float32) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
        integers = {name: column(name, np.int32) for name in ("top_k", "min_new_tokens")}
        numbers = jnp.asarray([0] * len(samplings) if samples is None else samples, np.int32)
        keys = jax.vmap(_row_key)(column("seed", np.uint32), numbers)
        return cls(**floats, **integers, keys=keys)


class SamplingOps(NamedTuple):
    """What a compiled program must be able to do (static): a batch of greedy rows pays for nothing else."""

    sample: bool  # draw tokens
    penalty: bool  # penalise repetition: needs `seen`
    minimum: bool  # keep answers from ending early
    logprobs: bool

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "SamplingOps":
        """The operations that these settings need."""
        return cls(
            sample=any(sampling.temperature > 0 for sampling in samplings),
            penalty=any(sampling.repetition_penalty != 1 for sampling in samplings),
            minimum=any(sampling.min_new_tokens > 0 for sampling in samplings),
            logprobs=any(sampling.logprobs for sampling in samplings),
        )


def choose(
    logits: Float[Array, "R V"],
    seen: Bool[Array, "R V"] | None,
    step: Int[Array, ""] | Int[Array, " R"],
    stop_ids: Int[Array, " X"],
    rows: SamplingRows,
    ops: SamplingOps,
) -> tuple[Int[Array, " R"], Float[Array, " R"] | None]:
    """The next token of each row, and its log-probability if `ops.logprobs`.

    Args:
        logits: of the next token.
        seen: tokens of the prompt and the answer so far (`mark_seen`); needed if `ops.penalty`.
        step: tokens of the answer so far, of all rows or of each.
        stop_ids: tokens that end an answer.
        rows: the settings of each row. Rows of temperature 0 take the most likely token, the lowest id of a tie.
        ops: static, and at least `SamplingOps.of` of all rows.

    Returns:
        int32 tokens, and float32 log-probabilities by the model alone, whatever the settings.
    """
    scores = adjust(logits.astype(jnp.float32), seen, step, stop_ids, rows, ops)
    token = scores.argmax(axis=-1)
    if ops.sample:
        keys = jax.vmap(jax.random.fold_in)(rows.keys, jnp.broadcast_to(step, token.shape))
        token = jnp.where(rows.temperature > 0, jax.vmap(_draw)(keys, keep_likely(scores, rows)), token)
    return token.astype(jnp.int32), log_probability(logits, token) if ops.logprobs else None


def adjust(
    scores: Float[Array, "R V"],
    seen: Bool[Array, "R V"] | None,
    step: Int[Array, ""] | Int[Array, " R"],
    stop_ids: Int[Array, " X"],
    rows: SamplingRows,
    ops: SamplingOps,
) -> Float[Array, "R V"]:
    """Scores after the repetition penalty and the minimum length; the other arguments are those of `choose`."""
    if ops.penalty:
        if seen is None:
            raise ValueError("a repetition penalty needs `seen`, the tokens so far: see mark_seen")
        penalty = rows.repetition_penalty[:, None]
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if ops.minimum:
        is_stop = jnp.zeros(scores.shape[1], jnp.bool_).at[stop_ids].set(True)
        scores = jnp.where((step < rows.min_new_tokens)[:, None] & is_stop, -jnp.inf, scores)
    return scores


def keep_likely(scores: Float[Array, "R V"], rows: SamplingRows) -> Float[Array, "R V"]:
    """What a row draws from: scores over temperature, -inf where top-k, top-p (of what top-k kept) or min-p removes a token.

    Tokens as likely as the last one kept are kept too.
    """
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
    scores = (scores - scores.max(axis=-1, keepdims=True)) / temperature  # the highest is 0
    top_k = jnp.where(rows.top_k > 0, rows.top_k.astype(jnp.float32), jnp.inf)
    top_p = jnp.where(rows.top_p < 1, rows.top_p, jnp.inf)
    kth = _lowest_kept(scores, jnp.ones_like(scores), top_k)
    probabilities = jax.nn.softmax(jnp.where(scores >= kth[:, None], scores, -jnp.inf))
    lowest = jnp.maximum(kth, _lowest_kept(scores, probabilities, top_p))
    lowest = jnp.maximum(lowest, jnp.log(rows.min_p))
    return jnp.where(scores >= lowest[:, None], scores, -jnp.inf)


def log_probability(logits: Float[Array, "R V"], token: Int[Array, " R"]) -> Float[Array, " R"]:
    """The float32 log-probability of one token a row."""
    logits = logits.astype(jnp.float32)
    return jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def mark_seen(seen: Bool[Array, "R V"], tokens: Int[Array, "R T"], valid: Bool[Array, "R T"]) -> Bool[Array, "R V"]:
    """`seen`, and the valid ones of `tokens`."""
    R, V = seen.shape
    return seen.at[jnp.arange(R)[:, None], jnp.where(valid, tokens, V)].set(True, mode="drop")


def _row_key(seed: UInt[Array, ""], sample: Int[Array, ""]) -> Key[Array, ""]:
    # The one of jax's generators whose numbers do not change when rows are batched by vmap.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), sample)


def _draw(key: Key[Array, ""], scores: Float[Array, " V"]) -> Int[Array, ""]:
    """A token, by the softmax of the scores: first a block of tokens, then one of them.

    For 16 rows of 151936 tokens that takes 2 ms on two CPU cores, where a random number for each token takes 29. Numbers that
    are compared with sums of probabilities would be as few, but rounding would change more of the draws.
    """
    blocks = jnp.pad(scores, (0, -len(scores) % _DRAWN_TOGETHER), constant_values=-jnp.inf).reshape(-1, _DRAWN_TOGETHER)
    of_block, of_token = jax.random.split(key)
    block = jax.random.categorical(of_block, jax.nn.logsumexp(blocks, axis=-1))
    return block * _DRAWN_TOGETHER + jax.random.categorical(of_token, blocks[block])


def _lowest_kept(scores: Float[Array, "R V"], weights: Float[Array, "R V"], bound: Float[Array, " R"]) -> Float[Array, " R"]:
    """The lowest score that is kept if tokens are kept, from the top, until their weights reach `bound` (> 0); at most 0.

    It is the smallest float32 above which the weights sum to less than `bound`, found by bisection. For top-k and top-p of
    eight rows of 151851 scores that takes 11 ms on two CPU cores, where sorting them takes 305 ms.
    """

    def halve(_: Int[Array, ""], ends: tuple[Int[Array, " R"], Int[Array, " R"]]) -> tuple[Int[Array, " R"], Int[Array, " R"]]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        above = jnp.where(scores > _float_at(middle)[:, None], weights, 0.0).sum(axis=-1)
        return jnp.where(above < bound, low, middle + 1), jnp.where(above < bound, middle, high)

    ends = jnp.full_like(bound, -_INFINITY - 1, jnp.int32), jnp.full_like(bound, _INFINITY, jnp.int32)
    return jnp.minimum(_float_at(jax.lax.fori_loop(0, 32, halve, ends)[1]), 0.0)


def _float_at(place: Int[Array, " R"]) -> Float[Array, " R"]:
    """The float32 at a place in the sorted sequence of all of them: 0.0 is at 0, -inf at `-_INFINITY - 1`."""
    return jax.lax.bitcast_convert_type(jnp.where(place < 0, place ^ 0x7FFFFFFF, place), jnp.float32)
