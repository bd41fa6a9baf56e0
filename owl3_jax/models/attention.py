"""All attention of the model: text over itself, text over images, an image over itself.

There is one backward pass, written out: it keeps the output and the log-sum-exp and computes the scores again, a chunk at a
time, so that it is the same for plain XLA and for the kernel, for one device and for many (`owl3_jax.models.attention_mesh`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.config import AttentionBackend
from owl3_jax.models import attention_chunks
from owl3_jax.models.attention_chunks import StackedKeys
from owl3_jax.models.attention_mesh import Dims, Spread
from owl3_jax.models.remat import attended
from owl3_jax.models.visibility import Visibility

TEXT = Dims("batch", "text", None)
VISION = Dims("vision_batch", "image_token", None)
IMAGES = Dims("batch", "text", "image")


class Plan(NamedTuple):
    """How attention runs; known while tracing."""

    dims: Dims
    backend: AttentionBackend
    images_per_chunk: int | None = None  # None: all


def attend(
    q: Float[Array, "B H T D"],
    k: Float[Array, "B K C D"],
    v: Float[Array, "B K C D"],
    visible: Visibility | None,
    plan: Plan,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Grouped-query attention; scores and softmax in float32. `visible` None: every position sees every key.

    Returns the output in the dtype of `q` (zero where a position sees nothing) and the log-sum-exp of the scores in float32
    (about -1e30 there). Both have gradients.
    """
    as_images = lambda x: x[None, :, :, :, None]  # C images of one token
    return attend_to_layer(q, as_images(k), as_images(v), jnp.int32(0), visible, plan)


def attend_to_layer(
    q: Float[Array, "B H T D"],
    keys: StackedKeys,
    values: StackedKeys,
    layer: Int[Array, ""],
    visible: Visibility | None,
    plan: Plan,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """As `attend`, over the keys of one of M layers; `visible` is over images of L tokens."""
    return _attend(plan, q, keys, values, layer, visible)


def attend_to_shared(
    attention: Callable[[Array], tuple[Array, Array]], q: Float[Array, "B H T D"], rows: int
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """`attention` over keys of B / n = `rows` rows, each shared by n rows of text that follow each other.

    It is given the n rows as one of n * T positions, which is what its keys' `Visibility` has to be over.
    """
    B, H, T, D = q.shape
    n = B // rows
    shared = jnp.moveaxis(q.reshape(rows, n, H, T, D), 1, 2).reshape(rows, H, n * T, D)
    out, lse = (jnp.moveaxis(x.reshape(rows, H, n, T, *x.shape[3:]), 2, 1) for x in attention(shared))
    return out.reshape(q.shape), lse.reshape(B, H, T)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, keys, values, layer, visible):
    local = functools.partial(attention_chunks.forward, images_per_chunk=plan.images_per_chunk, backend=plan.backend)
    out, lse = Spread.of(plan.dims, q, keys).forward(local, q, keys, values, layer, visible)
    return out.astype(q.dtype), lse


def _forward(plan, q, keys, values, layer, visible):
    out, lse = _attend(plan, q, keys, values, layer, visible)
    if plan.dims.keys is None:
        # Not of images: in a scan over layers, each of the N would make room for what only M compute.
        out, lse = attended(out), attended(lse)
    return (out, lse), (q, keys, values, layer, visible, out, lse)


def _backward(plan, residuals, cotangents):
    q, keys, values, layer, visible, out, lse = residuals
    layer = jnp.asarray(layer)  # a constant comes back as a numpy array
    d_out, d_lse = cotangents
    shift = d_lse - jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [B, H, T]
    local = functools.partial(attention_chunks.backward, images_per_chunk=plan.images_per_chunk, backend=plan.backend)
    spread = Spread.of(plan.dims, q, keys)
    d_q, *d_kv = spread.backward(local, q, keys, values, layer, visible, lse, shift, d_out)
    d_keys, d_values = (jnp.zeros_like(x).at[layer].set(d_x) for x, d_x in zip((keys, values), d_kv, strict=True))
    return d_q.astype(q.dtype), d_keys, d_values, None, None


_attend.defvjp(_forward, _backward)
