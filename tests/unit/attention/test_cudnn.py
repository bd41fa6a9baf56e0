"""What of cuDNN's attention a machine without a GPU can tell: when it is taken, and the order of dims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.backends import CUDNN, choose_backend, xla
from owl3_jax.attention.inputs import BlockInputs, OutputGradient


@pytest.mark.parametrize(
    ("dtype", "head_size", "backend", "platform", "taken"),
    [
        ("bfloat16", 72, "auto", "gpu", True),
        ("float32", 72, "auto", "gpu", False),
        ("bfloat16", 70, "auto", "gpu", False),
        ("bfloat16", 72, "xla", "gpu", False),
        ("bfloat16", 72, "auto", "cpu", False),
    ],
)
def test_cudnn_is_taken_on_gpus_in_half_precision(monkeypatch, dtype, head_size, backend, platform, taken):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    vectors = jnp.zeros((1, 2, 128, head_size), dtype)
    assert (choose_backend(backend, BlockInputs(vectors, vectors, vectors, None)) is CUDNN) == taken


def test_heads_and_positions_stand_where_the_library_wants_them(monkeypatch):
    library = jax.nn.dot_product_attention
    asked = []

    def in_xla(*vectors, implementation, **options):
        asked.append(implementation)
        return library(*vectors, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
    q, k, v, d_out = (jax.random.normal(key, (2, 3, 5, 8)) for key in jax.random.split(jax.random.key(0), 4))
    inputs = BlockInputs(q, k, v, None)
    out, lse = CUDNN.attend(inputs)
    expected = xla.attend(inputs)
    np.testing.assert_allclose(out, expected.out, atol=1e-6)
    np.testing.assert_allclose(lse, expected.lse, atol=1e-6)
    given = OutputGradient(lse, -(d_out * out).sum(axis=-1), d_out)
    for ours, theirs in zip(CUDNN.gradients(inputs, given), xla.gradients(inputs, given), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert asked == ["cudnn", "cudnn"]
