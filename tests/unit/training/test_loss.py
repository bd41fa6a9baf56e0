"""The loss in chunks against optax on whole logits, and the memory that it must not take."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from owl3_jax.batch import Batch
from owl3_jax.training.loss import next_token_sums, target_weights
from tests.tiny import pack, pad, single, stack
from tests.tolerances import CHUNKED_LOSS

V, E = 1009, 7
ROWS = [pad(pack([single(13, [2, 5], vocab=V, seed=1), single(11, [0], vocab=V, seed=2)]), 29, 5)]
ROWS += [pad(single(tokens, [1], vocab=V, seed=tokens), 29, 5) for tokens in (29, 2)]
BATCH: Batch = jax.tree.map(jnp.asarray, stack(ROWS))
X = jax.random.normal(jax.random.key(0), (3, 29, E))
TABLE = 3 * jax.random.normal(jax.random.key(1), (V, E))


def chunked(table, x, chunk, batch=BATCH, **settings):
    sums = next_token_sums(x, jnp.pad(table, ((0, 3), (0, 0))), batch, vocab_size=V, chunk=chunk, **settings)
    return sums.minimised / jnp.maximum(sums.weights.sum(), 1.0), sums


def whole(table, x, z_loss=0.0, rows=slice(None)):
    logits = jnp.einsum("bte,ve->btv", x, table)[rows, :-1]
    weights = target_weights(BATCH)[rows, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH.tokens[rows, 1:])
    nll += z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return (nll * weights).sum() / weights.sum()


def test_targets_are_the_following_tokens_of_the_same_segment():
    """Token 0 of each segment (0 and 13) has nothing before it; 24 and later are padding."""
    weights = np.zeros(29)
    targets = [t for t in range(1, 24) if t != 13]
    weights[[t - 1 for t in targets]] = BATCH.loss_weights[0, targets]
    np.testing.assert_array_equal(target_weights(BATCH)[0], weights)
    assert 0 < weights.sum() < len(targets)


@pytest.mark.parametrize(("chunk", "z_loss"), [(1, 0.0), (8, 0.0), (29, 0.0), (512, 0.0), (8, 0.03)])  # 8 does not divide 29
def test_value_and_gradients_equal_those_of_whole_logits(chunk, z_loss):
    expected, expected_grads = jax.jit(jax.value_and_grad(lambda *a: whole(*a, z_loss), argnums=(0, 1)))(TABLE, X)
    compute = lambda *a: jax.value_and_grad(functools.partial(chunked, z_loss=z_loss), argnums=(0, 1), has_aux=True)(*a, chunk)
    (loss, sums), grads = jax.jit(compute)(TABLE, X)
    np.testing.assert_allclose(sums.nll.sum() / sums.weights.sum(), whole(TABLE, X), rtol=CHUNKED_LOSS)
    np.testing.assert_allclose(loss, expected, rtol=CHUNKED_LOSS)
    for got, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, wanted, atol=CHUNKED_LOSS * float(jnp.abs(wanted).max()))


def test_each_source_has_its_own_sums():
    """The source of a target is that of the predicted token; source 1 has nothing."""
    sources = jnp.array([0, 2, 2])[:, None] * jnp.ones((1, 29), jnp.int32)
    _, sums = chunked(TABLE, X, 8, BATCH._replace(source_ids=sources), sources=3)
    weights = np.asarray(target_weights(BATCH)).sum(axis=1)
    np.testing.assert_allclose(sums.weights, [weights[0], 0.0, weights[1:].sum()])
    expected = [whole(TABLE, X, rows=slice(0, 1)) * weights[0], 0.0, whole(TABLE, X, rows=slice(1, 3)) * weights[1:].sum()]
    np.testing.assert_allclose(sums.nll, expected, rtol=2 * CHUNKED_LOSS)


def test_accuracy_counts_targets_that_no_token_beats():
    _, sums = chunked(TABLE, X, 8)
    logits = np.einsum("bte,ve->btv", X, TABLE)[:, :-1]
    weights = np.asarray(target_weights(BATCH))[:, :-1]
    hits = (logits.argmax(-1) == BATCH.tokens[:, 1:]) * weights
    easy = BATCH._replace(tokens=jnp.pad(jnp.asarray(logits.argmax(-1), jnp.int32), ((0, 0), (1, 0))))
    np.testing.assert_allclose(sums.correct, hits.sum())
    np.testing.assert_allclose(chunked(TABLE, X, 8, easy)[1].correct, weights.sum())


def test_rows_without_targets_have_no_loss():
    loss, sums = chunked(TABLE, X, 8, BATCH._replace(loss_weights=jnp.zeros((3, 29))))
    assert float(loss) == float(sums.weights.sum()) == 0


def test_no_array_holds_the_logits_of_more_than_a_chunk():
    step = jax.jit(lambda *a: jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True)(*a, 8))
    text = step.lower(TABLE, X).compile().as_text()
    shapes = [[int(size) for size in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(np.prod(shape) for shape in shapes if V + 3 in shape) == 3 * 8 * (V + 3)
