"""Attention over one block of keys on one device: plain XLA, or the kernel where the program turns out to be lowered for a TPU.

Compiling for a TPU happens on machines without one, so this is not asked of the machine. Softmax attention over a part of the
keys that also returns the log-sum-exp of its scores can be merged with another part without error. Chunks of images, text and
images in the joint form, and keys spread over devices are the same operation: `merge`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from owl3_jax.config import AttentionBackend
from owl3_jax.models import splash, xla_attention
from owl3_jax.models.splash_blocks import SMALLEST_BLOCK
from owl3_jax.models.visibility import Visibility


def forward(
    backend: AttentionBackend,
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Visibility | None,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """As `xla_attention.forward`."""
    return _choose(backend, splash.forward, xla_attention.forward, q, k, v, visible)


def backward(
    backend: AttentionBackend,
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Visibility | None,
    lse: Float[Array, "B H T"],
    shift: Float[Array, "B H T"],
    d_out: Float[Array, "B H T D"],
) -> tuple[Float[Array, "B H T D"], Float[Array, "B K C D"], Float[Array, "B K C D"]]:
    """As `xla_attention.backward`."""
    return _choose(backend, splash.backward, xla_attention.backward, q, k, v, visible, lse, shift, d_out)


def _choose(backend: AttentionBackend, kernel: Callable[..., Any], plain: Callable[..., Any], q: Array, *others: Any) -> Any:
    # A few positions, as in decoding, would leave most of the kernel's smallest block empty.
    if backend == "xla" or (backend == "auto" and q.shape[2] < SMALLEST_BLOCK):
        return plain(q, *others)
    elsewhere = functools.partial(kernel, interpret=True) if backend == "pallas" else plain
    return jax.lax.platform_dependent(q, *others, tpu=functools.partial(kernel, interpret=False), default=elsewhere)


def merge(
    out: Float[Array, "B H T D"],
    lse: Float[Array, "B H T"],
    other: Float[Array, "B H T D"],
    other_lse: Float[Array, "B H T"],
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Attention over the union of two disjoint sets of keys, from the attention over each."""
    share = jax.nn.sigmoid(other_lse - lse)[..., None]
    return out + share * (other - out), jnp.logaddexp(lse, other_lse)
