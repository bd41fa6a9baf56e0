"""Hyper attention: what the hyper layers have in addition to other decoder layers (paper, section 3).

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
from flax.linen import initializers
from jaxtyping import Array, Float, Int, Shaped

from owl3_jax.attention.attend import attend
from owl3_jax.attention.backends.splash_blocks import SMALLEST_BLOCK
from owl3_jax.attention.inputs import IMAGES, Plan
from owl3_jax.attention.pages import PagedKeys
from owl3_jax.attention.parts import Part
from owl3_jax.attention.visibility import Visibility
from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.nn.linear import Linear, declare
from owl3_jax.nn.norms import rms_norm
from owl3_jax.nn.quantized import rescale
from owl3_jax.nn.rope import rope
from owl3_jax.nn.stacks import Layer, Stack, select_layer
from owl3_jax.sharding import computes_on, constrain


class ImageCache(NamedTuple):
    """Rotated image keys and values of every hyper layer."""

    keys: Stack  # [M, B, K, I, L, D], with L = `image_token_slots`
    values: Stack

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the keys of a layer: [B, K, I, L, D]."""
        return select_layer(self.keys, 0)[0].shape[1:]

    @property
    def images(self) -> int:
        """I of the glossary."""
        return self.shape[2]


def image_token_slots(config: ModelConfig) -> int:
    """Image tokens and the padding that follows them in the cache of an image.

    On TPUs a multiple of the smallest block of the attention kernels, so that they read the tokens of several images in place.
    Nothing sees the padding.
    """
    tokens = config.vision.tokens_per_image
    return tokens + -tokens % SMALLEST_BLOCK if computes_on("tpu") else tokens


class Fusion(NamedTuple):
    """What hyper attention reads in addition to the text's self-attention, for all hyper layers."""

    blocks: tuple[ImageCache, ...] | PagedKeys  # of B rows, or of fewer: each then serves several successive rows of text
    visible: Visibility  # by the cache's rows: text rows that share one are a single row of B/rows * T positions
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
        slots = image_token_slots(self.config)
        image_features = jnp.pad(image_features, ((0, 0), (0, 0), (0, slots - image_features.shape[2]), (0, 0)))
        project = functools.partial(_keys_values, config=self.config, compute=self.compute)
        layer = jax.checkpoint(lambda weights: project(image_features, image_positions, *weights))  # keeps no normed copy
        weights = (self.v_kv_proj.adapted_kernel(), self.v_kv_proj.kernel_scale, self.v_kv_proj.bias)
        return ImageCache(*jax.lax.map(layer, (norm_scales, *weights)))

    def gate_weights(self) -> tuple[Array, ...]:
        """`Fusion.gate`."""
        if self.config.form == "gated":
            return self.gate_proj.adapted_kernel(), self.gate_proj.bias
        return (self.gate,) if self.config.form == "static" else ()


def _keys_values(
    features: Float[Array, "B I L E"],
    image_positions: Int[Array, "B I"],
    norm_scale: Float[Array, " E"],
    kernel: Shaped[Array, "E K 2 D"],
    kernel_scale: Float[Array, "K 2 D"] | None,
    bias: Float[Array, "K 2 D"],
    *,
    config: ModelConfig,
    compute: ComputeConfig,
) -> tuple[Float[Array, "B K I L D"], Float[Array, "B K I L D"]]:
    """Rotated keys, and values, of one hyper layer."""
    x = rms_norm(features, norm_scale, config.rms_norm_eps)
    kv = jnp.einsum("bile,ekcd->cbkild", x, kernel.astype(compute.dtype))
    if kernel_scale is not None:
        kv = rescale(kv, _over_tokens(kernel_scale))
    kv = kv + _over_tokens(bias).astype(compute.dtype)
    kv = constrain(kv, ("key_value", "batch", "act_kv_heads", "image", "image_token", "head_dim"))
    # All L tokens of an image share one rotation; values are not rotated.
    positions = (image_positions + config.image_rope_offset)[:, None, :, None]  # [B, 1, I, 1]
    return rope(kv[0], positions, config.rope_theta), kv[1]


def _over_tokens(x: Float[Array, "K 2 D"]) -> Float[Array, "2 1 K 1 1 D"]:
    """What is the same for all rows, images and tokens, to be broadcast to keys and values."""
    return jnp.moveaxis(x, 1, 0)[:, None, :, None, None]


def hyper_attention(
    layer: Layer,
    q: Float[Array, "B H T D"],
    text: Part,
    fusion: Fusion,
    compute: ComputeConfig,
    image_tokens: int | None = None,
) -> Float[Array, "B H T D"]:
    """(1 - g) * self-attention + g * image attention, for hyper layer `layer` (from zero), in the dtype of `q`.

    gated   g = sigmoid(gate_proj(text)), one [D, D] map shared by all heads
    static  g = sigmoid(gate)
    joint   g = sigmoid(image lse - text lse), which is one softmax over images and text

    A position that sees no image keeps its self-attention untouched. `image_tokens` of each image in the cache are real, the
    others padding; None: all are real.
    """
    gate = [x[layer] for x in fusion.gate]
    plan = Plan(IMAGES, compute.attention, compute.images_per_chunk, image_tokens)
    image = attend(q, fusion.blocks, fusion.visible, plan, layer)
    if len(gate) == 2:
        kernel, bias = (x.astype(q.dtype) for x in gate)
        logit = jnp.einsum("bhtd,de->bhte", text.out.astype(q.dtype), kernel) + bias
    elif len(gate) == 1:
        logit = gate[0][:, None]  # [H, 1, D]
    else:
        logit = (image.lse - text.lse)[..., None]
    mixed = text.out + jax.nn.sigmoid(logit.astype(jnp.float32)) * (image.out - text.out)
    sees = fusion.visible.sees.reshape(text.lse.shape[0], 1, -1, 1)  # [B, 1, T, 1]
    return jnp.where(sees, mixed.astype(q.dtype), text.out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def hyper_or_plain(
    compute: ComputeConfig,
    image_tokens: int | None,
    layer: Layer,
    q: Float[Array, "B H T D"],
    text: Part,
    fusion: Fusion,
    images: tuple[ImageCache, ...],
) -> tuple[Float[Array, "B H T D"], tuple[ImageCache, ...]]:
    """`hyper_attention` in a hyper layer; in the others (`layer` -1) the self-attention as it is.

    `images` are returned as they are. They are the blocks of `fusion`, and stand for them in the backward pass: the gradient
    that comes in for them goes out with this layer's added. As a gradient of `fusion`, which it is where `images` is empty, it
    would be filled with zeros in each layer that has none, and added to that of all layers before.

    The backward pass computes the branch that was taken again and keeps nothing of it, since all N layers would have to keep,
    or fill with zeros, what only M of them use. Under a remat policy the branch runs once more, for the block's output.
    """
    fuse = lambda layer, q, text, fusion: hyper_attention(layer, q, text, fusion, compute, image_tokens)
    plain = lambda layer, q, text, fusion: text.out
    out: Array = jax.lax.cond(layer >= 0, fuse, plain, layer, q, text, fusion)
    return out, images


_Taken = tuple[Layer, Array, Part, Fusion]


def _forward(
    compute: ComputeConfig,
    image_tokens: int | None,
    layer: Layer,
    q: Array,
    text: Part,
    fusion: Fusion,
    images: tuple[ImageCache, ...],
) -> tuple[tuple[Array, tuple[ImageCache, ...]], _Taken]:
    return hyper_or_plain(compute, image_tokens, layer, q, text, fusion, images), (layer, q, text, fusion)


def _backward(
    compute: ComputeConfig, image_tokens: int | None, taken: _Taken, cotangents: tuple[Array, tuple[ImageCache, ...]]
) -> tuple[None, Array, Part, Fusion, tuple[ImageCache, ...]]:
    layer, q, text, fusion = taken
    d_out, d_images = cotangents

    def fuse() -> tuple[Array, Part, tuple[Array, ...], tuple[ImageCache, ...]]:
        def again(q: Array, text: Part, gate: tuple[Array, ...], blocks: tuple[ImageCache, ...]) -> Array:
            return hyper_attention(layer, q, text, Fusion(blocks, fusion.visible, gate), compute, image_tokens)

        _, pull_back = jax.vjp(again, q, text, fusion.gate, fusion.blocks)
        d_q, d_text, d_gate, d_blocks = pull_back(d_out)
        return d_q, d_text, d_gate, jax.tree.map(jnp.add, d_images, d_blocks) if d_images else d_blocks

    def plain() -> tuple[Array, Part, tuple[Array, ...], tuple[ImageCache, ...]]:
        zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        return zeros(q), Part(d_out, zeros(text.lse)), zeros(fusion.gate), d_images or zeros(fusion.blocks)

    d_q, d_text, d_gate, d_blocks = jax.lax.cond(layer >= 0, fuse, plain)
    # Whole numbers, `layer` and what is visible, have no gradient.
    of_fusion = Fusion._make([None if d_images else d_blocks, None, d_gate])
    return None, d_q, d_text, of_fusion, d_blocks if d_images else ()


hyper_or_plain.defvjp(_forward, _backward)
