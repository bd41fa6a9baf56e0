"""The inputs of attention at each level, and of its backward pass."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from owl3_jax.attention.visibility import Visibility
from owl3_jax.config import AttentionBackend
from owl3_jax.nn.quantized import Quantized
from owl3_jax.nn.stacks import Stack

StackedKeys = Float[Array, "M B K I L D"] | Quantized
KeyBlock = tuple[Stack, Stack]  # keys and values of all layers, [M, B, K, I, L, D] each: of I images, or I tokens with L = 1


class Dims(NamedTuple):
    """Logical names of the dims of queries and keys (`owl3_jax.sharding.RULES`)."""

    rows: str
    positions: str
    keys: str | None  # None: every device has all keys


TEXT = Dims("batch", "text", None)
VISION = Dims("vision_batch", "image_token", None)
IMAGES = Dims("batch", "text", "image")


class Plan(NamedTuple):
    """How attention runs; known while tracing."""

    dims: Dims
    backend: AttentionBackend
    images_per_chunk: int | None = None  # None: all


class AttentionInputs(NamedTuple):
    """Queries, and one of M layers of keys and values."""

    q: Float[Array, "B H T D"]
    keys: StackedKeys
    values: StackedKeys
    layer: Int[Array, ""]
    visible: Visibility | None  # over images; None: every position sees every image


class BlockInputs(NamedTuple):
    """Queries, and keys and values of one block."""

    q: Float[Array, "B H T D"]
    k: Float[Array, "B K C D"]
    v: Float[Array, "B K C D"]
    visible: Visibility | None  # over keys, or over images, which share the C equally; None: every position sees every key


class OutputGradient(NamedTuple):
    """What the backward pass knows of the output. The log-sum-exp may cover more keys than those passed in.

    The score of key c gets weight_c * (d_out . v_c + shift), where shift = d_lse - d_out . out.
    """

    lse: Float[Array, "B H T"]
    shift: Float[Array, "B H T"]
    d_out: Float[Array, "B H T D"]


class Gradients(NamedTuple):
    """Of queries, keys and values. Keys and values are those of a block [B, K, C, D], or of a layer [B, K, I, L, D]."""

    d_q: Float[Array, "B H T D"]
    d_k: Float[Array, "B K *C D"]
    d_v: Float[Array, "B K *C D"]


def one_layer(k: Float[Array, "B K C D"], v: Float[Array, "B K C D"]) -> KeyBlock:
    """Keys and values of text as a block of one layer and C images of one token."""
    return as_images(k[None]), as_images(v[None])


def as_images(stack: Stack) -> Stack:
    """Stacked text [N, B, K, C, D] as C images of one token, [N, B, K, C, 1, D]."""
    viewed: Stack = jax.tree.map(lambda x: x[:, :, :, :, None], stack)
    return viewed
