"""From pixels to image features: SigLIP up to the penultimate block, and the projector."""

import torch.nn.functional as F
from torch import Tensor

from owl3_jax.config import Form, VisionConfig

from .layers import Weights, attend, join_heads, split_heads


def siglip(weights: Weights, config: VisionConfig, pixels: Tensor) -> Tensor:
    """[I, 3, S, S] -> [I, L, Ev]"""
    patches, eps = "vision_model.embeddings.patch_embedding", config.layer_norm_eps
    x = F.conv2d(pixels, weights[f"{patches}.weight"], weights[f"{patches}.bias"], stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2) + weights["vision_model.embeddings.position_embedding.weight"]
    for layer in range(config.num_used_layers):
        name = f"vision_model.encoder.layers.{layer}"
        x = x + _attention(weights, config, weights.layer_norm(x, f"{name}.layer_norm1", eps), f"{name}.self_attn")
        x = x + _mlp(weights, weights.layer_norm(x, f"{name}.layer_norm2", eps), f"{name}.mlp")
    return x


def _attention(weights: Weights, config: VisionConfig, x: Tensor, name: str) -> Tensor:
    size = config.hidden_size // config.num_attention_heads
    q, k, v = (split_heads(weights.linear(x, f"{name}.{part}_proj"), size) for part in "qkv")
    return weights.linear(join_heads(attend(q, k, v)), f"{name}.out_proj")


def _mlp(weights: Weights, x: Tensor, name: str) -> Tensor:
    return weights.linear(F.gelu(weights.linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")


def project(weights: Weights, form: Form, x: Tensor) -> Tensor:
    """[I, L, Ev] -> [I, L, E]"""
    name = "vision2text_model"
    if form != "joint":
        return weights.linear(x, name)
    return weights.linear(F.gelu(weights.linear(x, f"{name}.0")), f"{name}.2")
