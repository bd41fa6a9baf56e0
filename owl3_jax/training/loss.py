"""The training loss: next-token cross-entropy over weighted targets, a few positions at a time.

Logits in float32 are the largest array of a step by far: 151,851 numbers a position. Here they exist for one chunk of
positions only. What the backward pass needs of them, the gradients of hidden states and table, is computed while they
are there, so that they are computed once.

Each device adds up its own part of the table's gradient over all chunks; the parts are summed at the end. So the table
is gathered once and its gradient reduced once, however many chunks there are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from owl3_jax.batch import Batch
from owl3_jax.sharding import constrain, devices_along


class Targets(NamedTuple):
    """What positions predict; of all chunks, or of one (then without the dim `n`)."""

    tokens: Int[Array, "n r b s t"]
    weights: Float[Array, "n r b s t"]
    sources: Int[Array, "n r b s t"]


class LossSums(NamedTuple):
    """Weighted sums over target tokens, float32; those of two parts of a batch add up. Q sources of data."""

    minimised: Float[Array, ""]  # nll, and z_loss log(Z)^2
    nll: Float[Array, " Q"]  # cross-entropy, in nats
    correct: Float[Array, ""]  # whether no token is likelier than the target
    weights: Float[Array, " Q"]

    @classmethod
    def zero(cls, sources: int) -> "LossSums":
        """Of no tokens."""
        scalar, vector = jnp.zeros((), jnp.float32), jnp.zeros(sources, jnp.float32)
        return cls(scalar, vector, scalar, vector)


class Settings(NamedTuple):
    """What the loss depends on beside arrays."""

    vocab_size: int
    sources: int
    z_loss: float


def target_weights(batch: Batch) -> Float[Array, "B T"]:
    """The weight with which position t predicts tokens[t + 1]: 0 at the last position of a segment, and in padding."""
    following = batch.segment_ids[:, 1:]
    is_inside = (batch.segment_ids[:, :-1] == following) & (following != 0)
    return jnp.pad(jnp.where(is_inside, batch.loss_weights[:, 1:], 0.0), ((0, 0), (0, 1)))


def next_token_sums(
    x: Float[Array, "B T E"],
    table: Float[Array, "Vp E"],
    batch: Batch,
    *,
    vocab_size: int,
    chunk: int,
    sources: int = 1,
    z_loss: float = 0.0,
) -> LossSums:
    """Cross-entropy and accuracy of the tokens that follow, weighted by `loss_weights`, in float32.

    Args:
        x: hidden states after the final norm.
        table: the head; rows from `vocab_size` on are padding.
        chunk: text positions of a row whose logits exist at the same time, at most.
        sources: number of sources; above 1 the batch has `source_ids`.
        z_loss: weight of log(Z)^2 in `minimised`.

    Only `minimised` has gradients: of `x` and `table`.
    """
    follow = lambda ids: jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    tokens, split = follow(batch.tokens), functools.partial(_split_positions, chunk=chunk)
    ids = jnp.zeros_like(tokens) if batch.source_ids is None else follow(batch.source_ids)
    targets = Targets(split(tokens), split(target_weights(batch)), split(ids))
    return _loss_sums(split(x), table, targets, Settings(vocab_size, sources, z_loss))


def _split_positions(x: Shaped[Array, "B T *rest"], chunk: int) -> Shaped[Array, "n r b s t *rest"]:
    """`n` chunks of positions, each with the same number from every device: r x s devices split rows and text.

    Nothing moves between devices. Zeros follow the last position where `n` x `s` does not divide T.
    """
    B, T, *rest = x.shape
    rows, texts, chunks = devices_along("batch"), devices_along("text"), -(-T // chunk)
    x = jnp.pad(x, [(0, 0), (0, -T % (chunks * texts)), *[(0, 0)] * len(rest)])
    x = x.reshape(rows, B // rows, texts, -1, chunks, *rest)
    return jnp.moveaxis(constrain(x, ("batch", None, "text", *[None] * (x.ndim - 3))), 4, 0)


Chunks = Float[Array, "n r b s t E"]  # hidden states of all chunks
Whole = Float[Array, "Vp E"]  # the head


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _loss_sums(x: Chunks, table: Whole, targets: Targets, settings: Settings) -> LossSums:
    whole = _gather(table, x.dtype)

    def add(sums: LossSums, part: tuple[Array, Targets]) -> tuple[LossSums, None]:
        x, targets = part
        more, _ = _cross_entropy(_logits(x, whole, settings.vocab_size), targets, settings)
        return jax.tree.map(jnp.add, sums, more), None

    return jax.lax.scan(add, LossSums.zero(settings.sources), (x, targets))[0]


def _forward(x: Chunks, table: Whole, targets: Targets, settings: Settings) -> tuple[LossSums, tuple[Chunks, Whole]]:
    """The sums, and the gradients of `minimised` with respect to `x` and `table`."""
    whole = _gather(table, x.dtype)
    _, r, _, s, _, _ = x.shape

    def add(carry: tuple[LossSums, Array], part: tuple[Array, Targets]) -> tuple[tuple[LossSums, Array], Array]:
        sums, d_whole = carry
        x, targets = part
        more, d_logits = _cross_entropy(_logits(x, whole, settings.vocab_size), targets, settings)
        d_logits = d_logits.astype(x.dtype)
        with jax.named_scope("lm_head"):
            d_x = jnp.einsum("rbstv,ve->rbste", d_logits, whole)
            d_whole += jnp.einsum("rbstv,rbste->rsve", d_logits, x, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, more), d_whole), d_x

    parts = constrain(jnp.zeros((r, s, *table.shape), jnp.float32), ("batch", "text", "vocab", None))
    (sums, parts), d_x = jax.lax.scan(add, (LossSums.zero(settings.sources), parts), (x, targets))
    # Reduced in the dtype of all other gradients.
    d_table = constrain(parts.astype(x.dtype).sum(axis=(0, 1)), ("vocab", "embed"))
    return sums, (d_x, d_table.astype(table.dtype))


def _backward(settings: Settings, gradients: tuple[Chunks, Whole], cotangents: LossSums) -> tuple[Chunks, Whole, None]:
    del settings
    d_x, d_table = ((cotangents.minimised * gradient).astype(gradient.dtype) for gradient in gradients)
    return d_x, d_table, None


_loss_sums.defvjp(_forward, _backward)


def _gather(table: Whole, dtype: DTypeLike) -> Whole:
    """The head in the dtype of the activations, its columns no longer split."""
    return constrain(table.astype(dtype), ("vocab", None))


def _logits(x: Float[Array, "r b s t E"], table: Whole, vocab_size: int) -> Float[Array, "r b s t Vp"]:
    with jax.named_scope("lm_head"):
        logits = jnp.einsum("rbste,ve->rbstv", x, table, preferred_element_type=jnp.float32)
    logits = jnp.where(jnp.arange(len(table)) < vocab_size, logits, -jnp.inf)
    return constrain(logits, ("batch", None, "text", None, "act_vocab"))


def _cross_entropy(
    logits: Float[Array, "r b s t Vp"], targets: Targets, settings: Settings
) -> tuple[LossSums, Float[Array, "r b s t Vp"]]:
    """The sums, and the gradient of `minimised` with respect to the logits."""
    # Neither gather nor argmax: each device looks at its own part of the vocabulary.
    weights, is_target = targets.weights, targets.tokens[..., None] == jnp.arange(logits.shape[-1])
    target, top = jnp.where(is_target, logits, 0.0).sum(axis=-1), logits.max(axis=-1)
    shares = jnp.exp(logits - top[..., None])
    total = shares.sum(axis=-1)
    log_z = jnp.log(total) + top
    nll, correct = jnp.log(total) - (target - top), (target == top).astype(jnp.float32)
    minimised = nll + settings.z_loss * jnp.square(log_z) if settings.z_loss else nll
    of_source = targets.sources[..., None] == jnp.arange(settings.sources)
    by_source = lambda values: jnp.where(of_source, values[..., None], 0.0).sum(axis=tuple(range(values.ndim)))
    sums = LossSums((minimised * weights).sum(), by_source(nll * weights), (correct * weights).sum(), by_source(weights))
    pull = 1.0 + 2.0 * settings.z_loss * log_z if settings.z_loss else jnp.ones_like(log_z)
    return sums, ((shares / total[..., None]) * pull[..., None] - is_target) * weights[..., None]
