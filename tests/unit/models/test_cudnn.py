"""What of cuDNN's attention a machine without a GPU can tell: when it is taken, and the order of dims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.models import cudnn, xla_attention


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
    assert cudnn.cudnn_takes(jnp.zeros((1, 2, 3, head_size), dtype), backend) == taken


def test_heads_and_positions_stand_where_the_library_wants_them(monkeypatch):
    library = jax.nn.dot_product_attention
    asked = []

    def in_xla(*vectors, implementation):
        asked.append(implementation)
        return library(*vectors, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
    q, k, v = (jax.random.normal(key, (2, 3, 5, 8)) for key in jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(cudnn.cudnn_attention(q, k, v), xla_attention.forward(q, k, v, None)[0], atol=1e-6)
    assert asked == ["cudnn"]
