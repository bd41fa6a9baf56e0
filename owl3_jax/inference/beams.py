"""Beam search: the W likeliest beginnings of each answer are extended together, on the device, until none can win.

The scores of beams, which ones continue and when the search ends are as in transformers with `early_stopping=False`.

The W beams of each of B prompts are R = B * W rows of text. They share their prompt's rows of both caches; keys and values of
the answers are in a separate cache, which is reordered to follow the beams that continue.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from owl3_jax.inference.caches import constrain_text
from owl3_jax.inference.choose import SamplingOps, SamplingRows, adjust, mark_seen
from owl3_jax.inference.jitted import Jitted
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.models.qwen2 import Images, Text, TextCache
from owl3_jax.params import Params

_NEVER = -1e9  # score of a beam that must not be chosen


class BeamSettings(NamedTuple):
    """How the prompts of a batch are answered."""

    sampling: SamplingRows  # of R rows
    length_penalty: Float[Array, " B"]
    max_new_tokens: Int[Array, " B"]
    stop_ids: Int[Array, " X"]


class Hypotheses(NamedTuple):
    """Answers or beginnings of answers, the best first."""

    tokens: Int[Array, "B W A"]  # zeros after the last one
    logprobs: Float[Array, "B W A"] | None  # of each token by the model alone
    scores: Float[Array, "B W"]
    lengths: Int[Array, "B W"]  # tokens; 0 where there is none yet

    @classmethod
    def none(cls, rows: int, beams: int, capacity: int, logprobs: bool) -> "Hypotheses":
        """Empty places for `beams` answers of `capacity` tokens to each of `rows` prompts."""
        tokens = jnp.zeros((rows, beams, capacity), jnp.int32)
        scores = jnp.full((rows, beams), _NEVER, jnp.float32)
        return cls(tokens, tokens.astype(jnp.float32) if logprobs else None, scores, jnp.zeros((rows, beams), jnp.int32))

    def pick(self, index: Int[Array, "B W2"]) -> "Hypotheses":
        """The answers at `index` of each row."""
        return jax.tree.map(lambda x: _pick(x, index), self)


class _Search(NamedTuple):
    """State of the loop. The newest token of each running beam is not yet in the cache."""

    written: Int[Array, ""]
    positions: Int[Array, " B"]  # of the newest token
    done: Bool[Array, " B"]
    running: Hypotheses  # scores: sums of log-probabilities
    finished: Hypotheses  # scores: these sums over length ** length_penalty
    seen: Bool[Array, "R V"] | None
    cache: TextCache

    @classmethod
    def start(
        cls,
        cache: TextCache,
        positions: Int[Array, " B"],
        done: Bool[Array, " B"],
        seen: Bool[Array, "R V"] | None,
        beams: int,
        capacity: int,
        logprobs: bool,
    ) -> "_Search":
        """Nothing is written. All beams are equal, so only the first of each prompt may be continued."""
        nothing = Hypotheses.none(len(done), beams, capacity, logprobs)
        first = nothing._replace(scores=nothing.scores.at[:, 0].set(0.0))
        return cls(jnp.zeros((), jnp.int32), positions, done, first, nothing, seen, cache)


@functools.partial(Jitted, static_argnames=("model", "ops", "beams", "capacity"))
def search(
    model: Owl3,
    params: Params,
    last: Float[Array, "B E"],
    positions: Int[Array, " B"],
    past: TextCache,
    images: Images,
    prompt: Int[Array, "B T"],
    settings: BeamSettings,
    *,
    ops: SamplingOps,
    beams: int,
    capacity: int,
) -> Hypotheses:
    """The W = `beams` best answers to each prompt, with room for A = `capacity` tokens; the inputs are not changed.

    Args:
        last: hidden state of each prompt's last position.
        positions: of the answers' first tokens.
        past: the prompts' text.
        prompt: tokens that count as seen, -1 is padding; read if `ops.penalty`.
        settings: a prompt with `max_new_tokens` 0 is padding.
    """
    run = functools.partial(apply, model, params)
    spread = functools.partial(jnp.repeat, repeats=beams, axis=0)
    logits = spread(run("logits", last[:, None])[:, 0])
    seen = mark_seen(jnp.zeros(logits.shape, bool), spread(prompt), spread(prompt) >= 0) if ops.penalty else None
    done = settings.max_new_tokens <= 0
    cache = constrain_text(TextCache.empty(model.config, model.compute, len(logits), capacity))
    start = _Search.start(cache, positions - 1, done, seen, beams, capacity, ops.logprobs)

    def step(state: _Search) -> _Search:
        newest = state.running.tokens[:, :, state.written - 1].reshape(-1, 1)
        used = jnp.where(state.done, 0, 1)  # a prompt that is done continues as padding
        text = Text(newest, spread(state.positions)[:, None], spread(used)[:, None])
        x, extended = run("extend", text, images, state.cache, past)
        state, origin = _advance(state, run("logits", x)[:, 0], settings, ops)
        return state._replace(cache=_follow(extended, origin))

    first, _ = _advance(start, logits, settings, ops)
    return jax.lax.while_loop(lambda state: ~state.done.all(), step, first).finished


def _advance(
    state: _Search, logits: Float[Array, "R V"], settings: BeamSettings, ops: SamplingOps
) -> tuple[_Search, Int[Array, "B W"]]:
    """The search with one more token, and the beam that each running one continues."""
    B, W = state.running.scores.shape
    candidates, origin, ended = _candidates(state, logits, settings, ops)
    scores, chosen = jax.lax.top_k(jnp.where(ended, _NEVER, candidates.scores), W)
    running, origin = candidates.pick(chosen)._replace(scores=scores), _pick(origin, chosen)
    finished = _collect(state, candidates, ended, settings.length_penalty)
    best = scores[:, 0] / _length_divisor(state.written + 1, settings.length_penalty)
    over = (best <= finished.scores[:, -1]) | ended.all(axis=1)
    seen = state.seen
    if seen is not None:
        newest = running.tokens[:, :, state.written].reshape(B * W, 1)
        seen = mark_seen(_pick(seen.reshape(B, W, -1), origin).reshape(seen.shape), newest, newest >= 0)
    state = state._replace(written=state.written + 1, positions=state.positions + 1, done=state.done | over, seen=seen)
    return state._replace(running=running, finished=finished), origin


def _candidates(
    state: _Search, logits: Float[Array, "R V"], settings: BeamSettings, ops: SamplingOps
) -> tuple[Hypotheses, Int[Array, "B W2"], Bool[Array, "B W2"]]:
    """The best continuations of all running beams, the beams that they continue, and whether they end there.

    There are enough for W of them to continue even if each beam's likeliest tokens are the stop ids.
    """
    B, W = state.running.scores.shape
    V, many = logits.shape[1], W * (1 + settings.stop_ids.shape[0])
    own = jax.nn.log_softmax(logits.astype(jnp.float32))
    scores = adjust(own, state.seen, state.written, settings.stop_ids, settings.sampling, ops)
    scores, index = jax.lax.top_k((scores.reshape(B, W, V) + state.running.scores[..., None]).reshape(B, W * V), many)
    origin, token = index // V, (index % V).astype(jnp.int32)
    longer = state.running.pick(origin)
    longer = longer._replace(tokens=longer.tokens.at[:, :, state.written].set(token), scores=scores)
    if longer.logprobs is not None:
        longer = longer._replace(logprobs=longer.logprobs.at[:, :, state.written].set(_pick(own.reshape(B, W * V), index)))
    at_limit = (state.written + 1 >= settings.max_new_tokens)[:, None]
    return longer, origin, jnp.isin(token, settings.stop_ids) | at_limit


def _collect(
    state: _Search, candidates: Hypotheses, ended: Bool[Array, "B W2"], length_penalty: Float[Array, " B"]
) -> Hypotheses:
    """The W best finished answers, including those of the W best candidates that have ended."""
    W, length = state.finished.scores.shape[1], state.written + 1
    ended = ended & (jnp.arange(ended.shape[1]) < W)
    scores = candidates.scores / _length_divisor(length, length_penalty)[:, None]
    new = candidates._replace(scores=jnp.where(ended, scores, _NEVER), lengths=jnp.where(ended, length, 0))
    both: Hypotheses = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), state.finished, new)
    best = both.pick(jax.lax.top_k(both.scores, W)[1])
    keep = lambda old, new: jnp.where(state.done.reshape(-1, *[1] * (old.ndim - 1)), old, new)
    return jax.tree.map(keep, state.finished, best)


def _length_divisor(length: Int[Array, ""], length_penalty: Float[Array, " B"]) -> Float[Array, " B"]:
    return length.astype(jnp.float32) ** length_penalty


def _follow(cache: TextCache, origin: Int[Array, "B W"]) -> TextCache:
    """The cache in which each beam has the keys and values of the beam that it continues."""
    B, W = origin.shape

    def follow(x: Shaped[Array, "N R K C *D"]) -> Shaped[Array, "N R K C *D"]:
        by_prompt = x.reshape(len(x), B, W, *x.shape[2:])
        return jax.vmap(lambda beams, index: beams[:, index], (1, 0), 1)(by_prompt, origin).reshape(x.shape)

    keys, values = jax.tree.map(follow, (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values)


def _pick(x: Shaped[Array, "B W *rest"], index: Int[Array, "B W2"]) -> Shaped[Array, "B W2 *rest"]:
    return jax.vmap(lambda row, chosen: row[chosen])(x, index)
