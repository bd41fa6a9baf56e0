"""Qwen2 with hyper attention, for one prompt at a time."""

import dataclasses
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owl3_jax.config import ModelConfig
from owl3_jax.convert.table import EMBEDDING, TIED_HEAD

from .layers import Rotation, Weights, attend, join_heads, rope, rotate, split_heads


@dataclasses.dataclass
class Cache:
    """What is kept of a prompt from step to step; it grows with every token read."""

    features: Tensor  # [I, L, E], for the hyper layers to project again
    image_starts: Tensor  # [I] int64
    text: dict[int, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)  # layer -> keys, values [1, K, C, D]

    @property
    def length(self) -> int:
        """C of the glossary."""
        return self.text[0][0].shape[2] if self.text else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values [1, K, C, D], now ending in these [1, K, T, D]."""
        if layer in self.text:
            old_keys, old_values = self.text[layer]
            keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        self.text[layer] = keys, values
        return keys, values


class Masks(NamedTuple):
    """Who sees what while a prompt is read; a single new token sees everything and needs none."""

    visible: Tensor  # [T, I * L] bool, in the joint form [T, I * L + T]: the text follows the images
    any_image: Tensor  # [T, 1] bool


class Step(NamedTuple):
    """What all layers share while they read T new tokens."""

    text_rotation: Rotation  # [T, D]
    image_rotation: Rotation  # [I, 1, 1, D]: all tokens of an image share a position
    masks: Masks | None


class Decoder:
    """From tokens to logits of the next one."""

    def __init__(self, weights: Weights, config: ModelConfig, *, repeat_keys: bool) -> None:
        self._weights, self._config = weights, config
        self._attend = functools.partial(attend, repeat_keys=repeat_keys)
        self._head = EMBEDDING if config.tie_word_embeddings else TIED_HEAD

    def logits(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Of the last of tokens [1, T] int64, which are the whole prompt or a single new one -> [1, V]"""
        w, eps = self._weights, self._config.rms_norm_eps
        step = self._step(tokens.shape[1], cache)
        x = F.embedding(tokens, w[EMBEDDING])  # [1, T, E]
        for layer in range(self._config.num_hidden_layers):
            name = _name(layer)
            x = x + self._attention(layer, w.rms_norm(x, f"{name}.input_layernorm", eps), step, cache)
            x = x + self._mlp(w.rms_norm(x, f"{name}.post_attention_layernorm", eps), f"{name}.mlp")
        return F.linear(w.rms_norm(x[:, -1], "language_model.model.norm", eps), w[self._head])

    def _step(self, new: int, cache: Cache) -> Step:
        config = self._config
        positions = torch.arange(cache.length, cache.length + new)
        image_positions = (cache.image_starts + config.image_rope_offset)[:, None, None]
        text_rotation, image_rotation = (rope(p, config.head_dim, config.rope_theta) for p in (positions, image_positions))
        return Step(text_rotation, image_rotation, None if cache.text else self._masks(positions, cache))

    def _masks(self, positions: Tensor, cache: Cache) -> Masks:
        """For positions [T] of a prompt."""
        seen_from = cache.image_starts + (0 if self._config.image_is_seen_by_its_own_token else 1)
        images = positions[:, None] >= seen_from  # [T, I]
        visible = images.repeat_interleave(cache.features.shape[1], dim=1)
        if self._config.form == "joint":
            visible = torch.cat([visible, positions[:, None] >= positions], dim=1)
        return Masks(visible, images.any(dim=1, keepdim=True))

    def _attention(self, layer: int, x: Tensor, step: Step, cache: Cache) -> Tensor:
        """[1, T, E] -> [1, T, E]"""
        name = f"{_name(layer)}.self_attn"
        q, k, v = (split_heads(self._weights.linear(x, f"{name}.{part}_proj"), self._config.head_dim) for part in "qkv")
        q, k = rotate(q, step.text_rotation), rotate(k, step.text_rotation)
        k, v = cache.append(layer, k, v)
        if layer in self._config.hyper_layer_indices and len(cache.features):
            out = self._hyper_attention(layer, q, k, v, step, cache)
        else:
            out = self._attend(q, k, v, causal=step.masks is not None)
        return self._weights.linear(join_heads(out), f"{name}.o_proj")

    def _hyper_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step, cache: Cache) -> Tensor:
        """q [1, H, T, D], k and v [1, K, C, D] -> [1, H, T, D]"""
        visible = step.masks.visible if step.masks else None
        image_k, image_v = self._image_keys_and_values(layer, step, cache)
        if self._config.form == "joint":
            return self._attend(q, torch.cat([image_k, k], dim=2), torch.cat([image_v, v], dim=2), visible)
        s = self._attend(q, k, v, causal=step.masks is not None)
        fused = torch.lerp(s, self._attend(q, image_k, image_v, visible), self._gate(layer, s))
        return torch.where(step.masks.any_image, fused, s) if step.masks else fused

    def _image_keys_and_values(self, layer: int, step: Step, cache: Cache) -> tuple[Tensor, Tensor]:
        """[1, K, I * L, D] each, made again from the features at every step."""
        w, name = self._weights, _name(layer)
        normed = w.rms_norm(cache.features, f"{name}.input_layernorm", self._config.rms_norm_eps)
        kv = w.linear(normed, f"{name}.self_attn.v_kv_proj").unflatten(-1, (-1, 2, self._config.head_dim))
        keys, values = kv.unbind(-2)  # [I, L, K, D]
        heads_first = lambda x: x.flatten(0, 1).transpose(0, 1)[None]
        return heads_first(rotate(keys, step.image_rotation)), heads_first(values)

    def _gate(self, layer: int, s: Tensor) -> Tensor:
        """Share of the images, as s [1, H, T, D]."""
        name = f"{_name(layer)}.self_attn"
        if self._config.form == "gated":
            return torch.sigmoid(self._weights.linear(s, f"{name}.gate_proj.0"))
        return torch.sigmoid(self._weights[f"{name}.gate"]).view(-1, 1, s.shape[-1]).expand_as(s)

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        """[1, T, E] -> [1, T, E]"""
        w = self._weights
        return w.linear(F.silu(w.linear(x, f"{name}.gate_proj")) * w.linear(x, f"{name}.up_proj"), f"{name}.down_proj")


def _name(layer: int) -> str:
    return f"language_model.model.layers.{layer}"
