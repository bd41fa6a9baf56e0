"""Attention by its definition; which program computes it is in test_backends.py and test_spread.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import TEXT, Plan, one_layer
from owl3_jax.attention.visibility import Visibility, visibility

PLAN = Plan(TEXT, "xla")
B, T, H, K, D = 2, 7, 6, 3, 5


def naive_attention(q, k, v, visible):
    """Per head and position, in numpy float64."""
    B, H, T, D = q.shape
    out, lse = np.zeros(q.shape), np.full((B, H, T), -np.inf)
    for b, h, t in np.ndindex(B, H, T):
        keys = np.flatnonzero(visible[b, t])
        if keys.size:
            head = h // (H // k.shape[1])
            scores = k[b, head, keys].astype(float) @ q[b, h, t].astype(float) / np.sqrt(D)
            lse[b, h, t] = np.log(np.exp(scores).sum())
            out[b, h, t] = np.exp(scores - lse[b, h, t]) @ v[b, head, keys]
    return out, lse


def random_vectors(seed):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, heads, T, D)), jnp.float32) for heads in (H, K, K)]


def packed_rows() -> Visibility:
    """Samples of 4 and 2 tokens and one padding token, which sees nothing; a whole row."""
    positions = jnp.array([[0, 1, 2, 3, 0, 1, 0], range(T)], jnp.int32)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 0], [1] * T], jnp.int32)
    return visibility(positions, segments, positions, segments)


@pytest.mark.parametrize("visible", [packed_rows(), None], ids=["packed rows", "no mask"])
def test_attend_equals_definition_and_is_zero_where_nothing_is_seen(visible):
    q, k, v = random_vectors(0)
    out, lse = attend(q, [one_layer(k, v)], visible, PLAN)
    dense = np.ones((B, T, T), bool) if visible is None else visible.dense()
    expected_out, expected_lse = naive_attention(*map(np.asarray, (q, k, v)), np.asarray(dense))
    np.testing.assert_allclose(out, expected_out, atol=2e-6)
    some = np.isfinite(expected_lse)
    assert some.all() == (visible is None)
    np.testing.assert_allclose(np.asarray(lse)[some], expected_lse[some], atol=2e-6)
    assert np.all(np.asarray(lse)[~some] < -1e29)
    assert np.all(np.moveaxis(np.asarray(out), 3, 0)[:, ~some] == 0)


def plain(q, k, v, visible):
    """In a few lines that jax differentiates by itself."""
    k, v = (jnp.repeat(x, H // K, axis=1) for x in (k, v))
    scores = jnp.where(visible.dense()[:, None], jnp.einsum("bhtd,bhcd->bhtc", q, k) / D**0.5, -1e30)
    sees = visible.sees[:, None, :]
    out = jnp.where(sees[..., None], jnp.einsum("bhtc,bhcd->bhtd", jax.nn.softmax(scores), v), 0)
    return out, jnp.where(sees, jax.nn.logsumexp(scores, axis=-1), 0)


def test_gradients_through_output_and_log_sum_exp_equal_those_of_jax():
    vectors, visible = random_vectors(1), packed_rows()
    weights = jax.random.normal(jax.random.key(0), (B, H, T, D)), jax.random.normal(jax.random.key(1), (B, H, T))
    weights = weights[0], weights[1] * visible.sees[:, None]
    loss = lambda f: lambda *x: sum(jnp.sum(a * b) for a, b in zip(f(*x), weights, strict=True))
    grads = lambda f: jax.jit(jax.grad(loss(lambda *x: f(*x, visible)), argnums=(0, 1, 2)))(*vectors)
    for name, a, b in zip(
        "qkv", grads(lambda q, k, v, visible: attend(q, [one_layer(k, v)], visible, PLAN)), grads(plain), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=5e-6, err_msg=name)
        assert float(jnp.abs(b).max()) > 0.1


def test_gradients_are_zero_where_nothing_is_seen():
    nothing = packed_rows()._replace(limits=jnp.zeros((B, T), jnp.int32))
    value = lambda q, k, v: jnp.sum((attend(q, [one_layer(k, v)], nothing, PLAN).out + 1) ** 2)
    grads = jax.grad(value, argnums=(0, 1, 2))(*random_vectors(2))
    assert all(np.all(np.asarray(g) == 0) for g in grads)
