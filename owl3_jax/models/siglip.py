"""The vision encoder: SigLIP up to its penultimate block (official name `vision_model`)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jaxtyping import Array, Float, Shaped

from owl3_jax.attention.attend import attend
from owl3_jax.attention.backends.splash_blocks import SMALLEST_BLOCK
from owl3_jax.attention.inputs import VISION, Plan
from owl3_jax.config import ComputeConfig, VisionConfig
from owl3_jax.nn.linear import Linear, declare
from owl3_jax.nn.padding import pad_to_multiple
from owl3_jax.nn.remat import block_input, rematerialized
from owl3_jax.sharding import computes_on, constrain


def normalize_pixels(pixels: Shaped[Array, "*images S S 3"]) -> Float[Array, "*images S S 3"]:
    """uint8 pixels to float32 in [-1, 1]; float pixels are taken as already normalised."""
    if pixels.dtype == jnp.uint8:
        pixels = (pixels.astype(jnp.float32) / 255 - 0.5) / 0.5
    return pixels.astype(jnp.float32)


class Embeddings(nn.Module):
    """Patches (a convolution whose stride is its kernel, valid) plus learned positions."""

    config: VisionConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "X S S 3"]) -> Float[Array, "X L Ev"]:
        grid, side, width = self.config.grid, self.config.patch_size, self.config.hidden_size
        whole = grid * side  # the last S % P pixel rows and columns are dropped
        patches = pixels[:, :whole, :whole].reshape(len(pixels), grid, side, grid, side, 3)
        x = Linear(
            "xgphqc,pqce->xghe",
            (side, side, 3, width),
            ("patch_row", "patch_column", "channel", "vision_embed"),
            self.compute,
            name="patch_embedding",
        )(patches)
        shape, axes = (self.config.tokens_per_image, width), ("image_token", "vision_embed")
        positions = declare(self, "position_embedding", initializers.normal(width**-0.5), shape, axes, self.compute)
        return x.reshape(len(pixels), grid * grid, width) + positions.astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention without a mask, with biases, over the tokens of an image. What follows them is padding."""

    config: VisionConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "X L Ev"]) -> Float[Array, "X L Ev"]:
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        shape, axes = (width, heads, width // heads), ("vision_embed", "vision_heads", "head_dim")
        q, k, v = (Linear("xle,ehd->xhld", shape, axes, self.compute, name=f"{name}_proj")(x) for name in "qkv")
        plan = Plan(VISION, self.compute.attention, real_tokens=self.config.tokens_per_image, reads_lse=False)
        as_image = lambda x: x[None, :, :, None]  # [1, X, H, 1, L, D]
        out = attend(q, [(as_image(k), as_image(v))], None, plan).out
        return Linear("xhld,hde->xle", (*shape[1:], width), (*axes[1:], "vision_embed"), self.compute, name="out_proj")(out)


class MLP(nn.Module):
    """fc1, GELU (tanh approximation), fc2."""

    config: VisionConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "X L Ev"]) -> Float[Array, "X L Ev"]:
        width, hidden = self.config.hidden_size, self.config.intermediate_size
        x = Linear("xle,ef->xlf", (width, hidden), ("vision_embed", "vision_mlp"), self.compute, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=True)
        return Linear("xlf,fe->xle", (hidden, width), ("vision_mlp", "vision_embed"), self.compute, name="fc2")(x)


class EncoderBlock(nn.Module):
    """Pre-norm block; a scan body: returns (carry, output to stack)."""

    config: VisionConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "X L Ev"]) -> tuple[Float[Array, "X L Ev"], None]:
        with jax.named_scope("encoder_block"):  # a scan may move operations out of all scopes around it
            x = block_input(constrain(x, ("vision_batch", "image_token", "act_embed")))
            x = x + SelfAttention(self.config, self.compute, name="self_attn")(self._norm("layer_norm1")(x))
            x = x + MLP(self.config, self.compute, name="mlp")(self._norm("layer_norm2")(x))
        return x, None

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            dtype=self.compute.dtype,
            param_dtype=self.compute.param_dtype,
            # Mean and variance in one pass: rounding grows with mean^2 / variance, which is small in a residual stream.
            use_fast_variance=True,
            scale_init=nn.with_logical_partitioning(initializers.ones_init(), ("norm",)),
            bias_init=nn.with_logical_partitioning(initializers.zeros_init(), ("norm",)),
            name=name,
        )


class Siglip(nn.Module):
    """Images to image tokens: the output of the penultimate block, with no final norm.

    The checkpoints' last block, `post_layernorm` and pooling `head` are never used and have no
    parameters here.
    """

    config: VisionConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, pixels: Shaped[Array, "X S S 3"]) -> Float[Array, "X L Ev"]:
        with jax.named_scope("embeddings"):
            pixels = normalize_pixels(pixels)
        x = Embeddings(self.config, self.compute, name="embeddings")(pixels)
        encoder = nn.scan(
            rematerialized(EncoderBlock, self.compute.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_used_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        # Kernels would pad every layer's queries, keys and values for themselves.
        padded = pad_to_multiple(x, 1, SMALLEST_BLOCK) if computes_on("tpu") else x
        x, _ = encoder(self.config, self.compute, name="layers")(padded)
        return x[:, : self.config.tokens_per_image]
