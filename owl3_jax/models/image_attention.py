"""The one attention of text over images: all forms of hyper attention call it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from owl3_jax.config import ComputeConfig
from owl3_jax.models.attention import IMAGES, Plan, attend_to_layer
from owl3_jax.models.attention_chunks import StackedKeys
from owl3_jax.models.visibility import Visibility
from owl3_jax.models.xla_attention import MASKED


def image_attention(
    q: Float[Array, "B H T D"],
    keys: StackedKeys,
    values: StackedKeys,
    layer: Int[Array, ""],
    visible: Visibility | None,
    compute: ComputeConfig,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Attention of rotated text queries over rotated image keys (paper, section on hyper attention).

    `layer` chooses among the M hyper layers; `visible` is over images, whose tokens are seen together; with None
    all positions see all images. Returns what `owl3_jax.models.attention.attend` does.
    """
    if keys.shape[3] == 0:
        return jnp.zeros_like(q), jnp.full(q.shape[:3], MASKED, jnp.float32)
    return attend_to_layer(q, keys, values, layer, visible, Plan(IMAGES, compute.attention, compute.images_per_chunk))
