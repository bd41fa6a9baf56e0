"""The inputs of attention at each level, and of its backward pass."""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
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
    real_tokens: int | None = None  # of the L of an image: those after them are padding, which nothing sees. None: all
    reads_lse: bool = True  # else the log-sum-exp that comes back is of no use


class AttentionInputs(NamedTuple):
    """Queries, and one of M layers of keys and values."""

    q: Float[Array, "B H T D"]
    keys: StackedKeys
    values: StackedKeys
    layer: Int[Array, ""]
    visible: Visibility | None  # over images; None: every position sees every image


@flax.struct.dataclass
class BlockInputs:
    """Queries, and keys and values of one block."""

    q: Float[Array, "B H T D"]
    k: Float[Array, "B K C D"]
    v: Float[Array, "B K C D"]
    visible: Visibility | None  # over keys, or over images, which share the C equally; None: every position sees every key
    # As in `Plan`. Where `visible` is None, a block with padding is of one image.
    real_tokens: int | None = flax.struct.field(pytree_node=False, default=None)
    reads_lse: bool = flax.struct.field(pytree_node=False, default=True)  # as in `Plan`

    def without_padding(self) -> "BlockInputs":
        """The same without padding, unless it is between images: `visible` has to hide that."""
        if self.real_tokens is None or self.visible is not None:
            return self
        return dataclasses.replace(self, k=self.k[:, :, : self.real_tokens], v=self.v[:, :, : self.real_tokens])


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

    def with_padding(self, keys: int) -> "Gradients":
        """Of a block of C = `keys`, from those of its real keys."""
        whole = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, keys - x.shape[2]), (0, 0)))
        return self._replace(d_k=whole(self.d_k), d_v=whole(self.d_v))


def one_layer(k: Float[Array, "B K C D"], v: Float[Array, "B K C D"]) -> KeyBlock:
    """Keys and values of text as a block of one layer and C images of one token."""
    return as_images(k[None]), as_images(v[None])


def as_images(stack: Stack) -> Stack:
    """Stacked text [N, B, K, C, D] as C images of one token, [N, B, K, C, 1, D]."""
    viewed: Stack = jax.tree.map(lambda x: x[:, :, :, :, None], stack)
    return viewed
