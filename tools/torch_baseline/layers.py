"""What the vision encoder and the decoder are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cos and sin, [*, D] float32


class Weights:
    """Tensors by official name, and the layers that are no more than a function of theirs."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """[*, in] -> [*, out], with a bias where there is one."""
        return F.linear(x, self[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def rms_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """[*, E] -> [*, E]"""
        return F.rms_norm(x, x.shape[-1:], self[f"{name}.weight"], eps)

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """[*, Ev] -> [*, Ev]"""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)


def split_heads(x: Tensor, size: int) -> Tensor:
    """[B, T, heads * size] -> [B, heads, T, size]"""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, T, size] -> [B, T, heads * size]"""
    return x.transpose(1, 2).flatten(2)


def rope(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """cos and sin [*, D] of positions [*]."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions[..., None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x [*, D] by cos and sin that broadcast to it, computed in float32."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, *, causal: bool = False, repeat_keys: bool = False
) -> Tensor:
    """q [B, H, T, D], k and v [B, K, C, D], visible [T, C] bool -> [B, H, T, D]; undefined where nothing is visible.

    With `repeat_keys` every query head gets a copy of its keys and values.
    """
    if repeat_keys:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
