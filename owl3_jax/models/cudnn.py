"""Attention without a mask by cuDNN, on GPUs that have it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from owl3_jax.config import AttentionBackend


def cudnn_takes(q: Float[Array, "B H T D"], backend: AttentionBackend) -> bool:
    """Whether cuDNN computes attention of such queries: it wants half precision, and must be there while tracing."""
    return backend == "auto" and q.dtype != jnp.float32 and q.shape[3] % 8 == 0 and jax.default_backend() == "gpu"


def cudnn_attention(
    q: Float[Array, "B H T D"], k: Float[Array, "B K C D"], v: Float[Array, "B K C D"]
) -> Float[Array, "B H T D"]:
    """Every position sees every key. Its gradient is cuDNN's too.

    Text and images need masks, and their log-sum-exp with a gradient; what cuDNN makes of these has not been measured on a GPU.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"), 1, 2)
