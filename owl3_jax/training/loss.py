"""The training loss: next-token cross-entropy over weighted targets."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from owl3_jax.batch import Batch


def next_token_loss(logits: Float[Array, "B T V"], batch: Batch) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean cross-entropy over targets, weighted by `loss_weights`, in float32.

    The logits at t predict tokens[t + 1]; a segment's first token is nobody's target. The metrics are
    `accuracy` (weighted, of the most likely token) and `target_tokens` (sum of the weights).
    """
    targets, weights = _targets(batch)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], targets)
    total = jnp.maximum(weights.sum(), 1.0)
    correct = (logits[:, :-1].argmax(axis=-1) == targets).astype(jnp.float32)
    metrics = {"accuracy": (correct * weights).sum() / total, "target_tokens": weights.sum()}
    return (nll * weights).sum() / total, metrics


def _targets(batch: Batch) -> tuple[Int[Array, "B T1"], Float[Array, "B T1"]]:
    same_segment = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    weights = jnp.where(same_segment & (batch.segment_ids[:, 1:] != 0), batch.loss_weights[:, 1:], 0.0)
    return batch.tokens[:, 1:], weights
