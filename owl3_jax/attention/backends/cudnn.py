"""Attention without a mask by cuDNN, on GPUs that have it."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from owl3_jax.attention.inputs import BlockInputs, Gradients, OutputGradient
from owl3_jax.attention.parts import Part


def takes(inputs: BlockInputs) -> bool:
    """Whether cuDNN computes this block: unmasked, in half precision, on a GPU that is present while tracing.

    Attention of text needs masks; how fast cuDNN is with them has not been measured.
    """
    q = inputs.q
    unmasked = inputs.visible is None
    return unmasked and q.dtype != jnp.float32 and q.shape[3] % 8 == 0 and jax.default_backend() == "gpu"


def attend(inputs: BlockInputs) -> Part:
    """Every position sees every key."""
    inputs = inputs.without_padding()
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (inputs.q, inputs.k, inputs.v))  # [B, H, T, D] -> [B, T, H, D]
    out, lse = jax.nn.dot_product_attention(q, k, v, implementation="cudnn", return_residual=True)
    return Part(*(jnp.swapaxes(x, 1, 2).astype(jnp.float32) for x in (out, lse)))


def gradients(inputs: BlockInputs, given: OutputGradient) -> Gradients:
    """cuDNN's own, through the output alone: it has none through the log-sum-exp, which unmasked attention does not use."""

    def output(q: Float[Array, "B H T D"], k: Float[Array, "B K C D"], v: Float[Array, "B K C D"]) -> Float[Array, "B H T D"]:
        by_position = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(jax.nn.dot_product_attention(*by_position, implementation="cudnn"), 1, 2)

    keys, inputs = inputs.k.shape[2], inputs.without_padding()
    _, pull_back = jax.vjp(output, inputs.q, inputs.k, inputs.v)
    d_q, d_k, d_v = pull_back(given.d_out.astype(inputs.q.dtype))
    return Gradients(cast(Array, d_q).astype(jnp.float32), d_k, d_v).with_padding(keys)
