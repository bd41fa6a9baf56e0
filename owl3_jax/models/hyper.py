"""Hyper attention: what a few decoder layers have beside the common ones (paper, section 3).

The extras of all hyper layers are stacked, [M, ...]. Image keys and values depend on the images and
their placeholders' positions only, so they are computed once, before the decoder's layers run, in
training as at prefill; every layer then reads its own row of the `ImageCache`.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from jaxtyping import Array, Float, Int

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.attention import attend_to_shared
from owl3_jax.models.block_attention import merge
from owl3_jax.models.image_attention import image_attention
from owl3_jax.models.layers import Linear, constrain, declare, rms_norm, rope
from owl3_jax.models.quantized import rescale
from owl3_jax.models.stacks import Layer, Stack, stack_with
from owl3_jax.models.visibility import Visibility
from owl3_jax.models.xla_attention import MASKED

# Blocks of images whose attention may run at the same time. With one, cores wait for each other after every product.
_BLOCKS_AT_ONCE = 4


class ImageCache(NamedTuple):
    """Rotated image keys and values of every hyper layer."""

    keys: Stack  # [M, B, K, I, L, D]
    values: Stack

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys of a layer: [B, K, I, L, D]."""
        return stack_with(self.keys, 0)[0].shape[1:]

    @property
    def images(self) -> int:
        """I of the glossary."""
        return self.shape[2]


class Fusion(NamedTuple):
    """All that hyper attention needs beside the text's own attention, for every hyper layer."""

    blocks: tuple[ImageCache, ...]  # of B rows, or of fewer: each then serves several rows of text that follow each other
    visible: Visibility  # of the cache's rows: where B is more, the text that shares a row is one row of B/rows * T positions
    gate: tuple[Array, ...]  # gated: kernel [M, D, D] and bias [M, D]; static: [M, H, D]; joint: nothing


class HyperLayers(nn.Module):
    """Parameters of the hyper layers (official `v_kv_proj`, `gate_proj.0` or `gate`), stacked."""

    config: ModelConfig
    compute: ComputeConfig

    def setup(self) -> None:
        config, M, D = self.config, len(self.config.hyper_layers), self.config.head_dim
        self.v_kv_proj = Linear(
            "mbile,mekcd->mbilkcd",
            (M, config.hidden_size, config.num_key_value_heads, 2, D),
            ("hyper_layers", "embed", "kv_heads", "key_value", "head_dim"),
            self.compute,
        )
        if config.form == "gated":
            axes = ("hyper_layers", "head_dim", "gate_out")
            floats = dataclasses.replace(self.compute, weight_dtype=None)  # too small to gain from int8
            self.gate_proj = Linear("mbhtd,mde->mbhte", (M, D, D), axes, floats)
        elif config.form == "static":
            shape, axes = (M, config.num_attention_heads, D), ("hyper_layers", "heads", "head_dim")
            self.gate: Array = declare(self, "gate", initializers.zeros_init(), shape, axes, self.compute)

    def image_cache(
        self,
        image_features: Float[Array, "B I L E"],
        image_positions: Int[Array, "B I"],
        norm_scales: Float[Array, "M E"],
    ) -> ImageCache:
        """Keys and values of all images, one hyper layer after the other.

        `norm_scales` are the layers' own `input_layernorm`: image tokens share it with the text.
        """
        project = functools.partial(_keys_values, config=self.config, compute=self.compute)
        layer = jax.checkpoint(lambda weights: project(image_features, image_positions, *weights))  # keeps no normed copy
        weights = (self.v_kv_proj.kernel, self.v_kv_proj.kernel_scale, self.v_kv_proj.bias)
        return ImageCache(*jax.lax.map(layer, (norm_scales, *weights)))

    def gate_weights(self) -> tuple[Array, ...]:
        """`Fusion.gate`."""
        if self.config.form == "gated":
            return self.gate_proj.kernel, self.gate_proj.bias
        return (self.gate,) if self.config.form == "static" else ()


def _keys_values(features, image_positions, norm_scale, kernel, kernel_scale, bias, *, config, compute):
    x = rms_norm(features, norm_scale, config.rms_norm_eps)
    kv = jnp.einsum("bile,ekcd->cbkild", x, kernel.astype(compute.dtype))
    spread = lambda x: jnp.moveaxis(x, 1, 0)[:, None, :, None, None]  # [K, 2, D] -> [2, 1, K, 1, 1, D]
    if kernel_scale is not None:
        kv = rescale(kv, spread(kernel_scale))
    kv = kv + spread(bias).astype(compute.dtype)
    kv = constrain(kv, ("key_value", "batch", "act_kv_heads", "image", "image_token", "head_dim"))
    # All L tokens of an image share one rotation; values are not rotated.
    positions = (image_positions + config.image_rope_offset)[:, None, :, None]  # [B, 1, I, 1]
    return rope(kv[0], positions, config.rope_theta), kv[1]


def hyper_attention(
    layer: Layer,
    q: Float[Array, "B H T D"],
    text: Float[Array, "B H T D"],
    text_lse: Float[Array, "B H T"],
    fusion: Fusion,
    compute: ComputeConfig,
) -> Float[Array, "B H T D"]:
    """(1 - g) * self-attention + g * image attention, for hyper layer `layer` (from zero), in the dtype of `q`.

    gated   g = sigmoid(gate_proj(text)), one [D, D] map shared by all heads
    static  g = sigmoid(gate)
    joint   g = sigmoid(image lse - text lse), which is one softmax over images and text

    A position that sees no image keeps its self-attention untouched.
    """
    gate = [x[layer] for x in fusion.gate]
    attend_to_images = functools.partial(_attend_to_blocks, layer=layer, fusion=fusion, compute=compute)
    image, image_lse = attend_to_shared(attend_to_images, q, fusion.blocks[0].shape[0])
    if len(gate) == 2:
        kernel, bias = (x.astype(q.dtype) for x in gate)
        logit = jnp.einsum("bhtd,de->bhte", text.astype(q.dtype), kernel) + bias
    elif len(gate) == 1:
        logit = gate[0][:, None]  # [H, 1, D]
    else:
        logit = (image_lse - text_lse)[..., None]
    mixed = text + jax.nn.sigmoid(logit.astype(jnp.float32)) * (image - text)
    sees = fusion.visible.sees.reshape(text_lse.shape[0], 1, -1, 1)  # [B, 1, T, 1]
    return jnp.where(sees, mixed.astype(q.dtype), text)


def _attend_to_blocks(q, *, layer, fusion, compute):
    """Of several blocks, a group at a time: what nobody sees costs nothing, and what everybody sees needs no mask."""
    attend = functools.partial(_attend_to_block, q, layer, compute)
    if len(fusion.blocks) == 1:
        return attend(fusion.blocks[0], fusion.visible)
    merged = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
    starts = np.cumsum([0, *(block.images for block in fusion.blocks)]).tolist()
    visible = [fusion.visible.part(start, block.images) for start, block in zip(starts, fusion.blocks, strict=False)]
    for first in range(0, len(fusion.blocks), _BLOCKS_AT_ONCE):
        group = slice(first, first + _BLOCKS_AT_ONCE)
        merged = _merge_what_is_seen(merged, attend, fusion.blocks[group], visible[group])
    return merged[0].astype(q.dtype), merged[1]


def _merge_what_is_seen(merged, attend, blocks, visible):
    seen = jnp.concatenate([of_block.dense() for of_block in visible], axis=2)
    none = lambda merged: merged
    some = lambda merged: _merge_all(merged, [attend(*block) for block in zip(blocks, visible, strict=True)])
    everything = lambda merged: _merge_all(merged, [attend(block, None) for block in blocks])
    return jax.lax.switch(seen.any().astype(jnp.int32) + seen.all(), (none, some, everything), merged)


def _merge_all(merged, parts):
    return functools.reduce(lambda merged, part: merge(*merged, *part), parts, merged)


def _attend_to_block(q, layer, compute, block, visible):
    keys, row = stack_with(block.keys, layer)
    values, _ = stack_with(block.values, layer)
    return image_attention(q, keys, values, jnp.asarray(row, jnp.int32), visible, compute)
