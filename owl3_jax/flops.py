"""FLOPs of the model by formula: matrix products only, two for each multiply-add.

XLA's own count can't be used: it counts the body of a loop once. Attention counts the pairs of positions and keys where one
sees the other. What is computed a second time to save memory is not counted as the model's work (MFU, model FLOPs utilisation).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from flax.traverse_util import flatten_dict

from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig, ModelConfig, Remat
from owl3_jax.models.owl3 import abstract_params

# Whether the backward pass computes a block's products with parameters again, and its attention.
_COMPUTED_AGAIN: dict[Remat, tuple[bool, bool]] = {
    "none": (False, False),
    "dots": (False, False),
    "minimal": (True, False),
    "full": (True, True),
    "offload": (True, True),
}


# Operations a second in bfloat16 of one device, by its `jax.Device.device_kind`; as published by Google (`owl3_jax.tpu.chips`)
# and NVIDIA (data sheets of November 2026, without sparsity).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 operations a second of a device; None where they are not known."""
    return PEAKS.get(device_kind)


class Work(NamedTuple):
    """What the model processes, summed over the rows of a batch."""

    tokens: int  # text positions
    images: int
    text_pairs: int  # text position x text position that it sees, in one layer
    image_pairs: int  # text position x image token that it sees, in one hyper layer
    outputs: int  # positions whose logits are computed

    @classmethod
    def of_rows(cls, config: ModelConfig, rows: int, tokens: int, images: int) -> "Work":
        """Full rows of one sample each, placeholders evenly spread: a text position sees half of its row on average."""
        pairs = tokens * (tokens + 1) // 2
        image_pairs = tokens * images * config.vision.tokens_per_image // 2
        return cls(rows * tokens, rows * images, rows * pairs, rows * image_pairs, rows * tokens)

    @classmethod
    def of_batch(cls, config: ModelConfig, batch: Batch) -> "Work":
        """What a batch holds, without padding; its arrays are numpy's."""
        is_text = batch.segment_ids != 0
        tokens = int(is_text.sum())
        same = batch.segment_ids[:, :, None] == batch.image_segment_ids[:, None, :]  # [B, T, I]
        after = batch.positions[:, :, None] > batch.image_positions[:, None, :]
        seen = int((same & after & is_text[:, :, None]).sum())
        pairs = int((batch.positions + 1)[is_text].sum())
        return cls(tokens, int((batch.image_segment_ids != 0).sum()), pairs, seen * config.vision.tokens_per_image, tokens)

    def plus(self, other: "Work") -> "Work":
        """The work of both together."""
        return Work(*(x + y for x, y in zip(self, other, strict=True)))


class Part(NamedTuple):
    """A part of the model, in the order of the forward pass."""

    parameters: str  # regex of the paths of its parameters
    products: int  # FLOPs of products with parameters, forward
    pairs: int = 0  # FLOPs of products of activations
    deep: bool = False  # several layers: gradients of activations are needed within it


def parts(config: ModelConfig, work: Work) -> list[Part]:
    """The forward pass, part by part."""
    E, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    N, M = config.num_hidden_layers, len(config.hyper_layers)
    layer = E * D * (2 * H + 2 * K) + 3 * E * F
    gate = H * D * D if config.form == "gated" else 0
    attention = 4 * H * D * (N * work.text_pairs + M * work.image_pairs)
    head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    return [
        *_vision_parts(config, work.images),
        Part("language_model/hyper_layers/v_kv_proj/.*", image_cache_flops(config, work.images)),
        Part("language_model/hyper_layers/gate.*", 2 * work.tokens * M * gate),
        Part("language_model/(layers|embed_tokens).*", 2 * work.tokens * N * layer, attention, deep=True),
        Part(f"language_model/{head}", 2 * work.outputs * E * V),
    ]


def _vision_parts(config: ModelConfig, images: int) -> list[Part]:
    vision, E, L = config.vision, config.hidden_size, config.vision.tokens_per_image
    Ev, layers = vision.hidden_size, vision.num_used_layers
    block = 4 * Ev**2 + 2 * Ev * vision.intermediate_size
    tokens = 2 * images * L
    second = [Part("vision2text_model/2/.*", tokens * E * E)] if config.form == "joint" else []
    return [
        Part("vision_model/embeddings/.*", tokens * 3 * vision.patch_size**2 * Ev),
        Part("vision_model/layers/.*", tokens * layers * block, 2 * tokens * layers * L * Ev, deep=True),
        Part("vision2text_model/(0|linear)/.*", tokens * Ev * E),
        *second,
    ]


def image_cache_flops(config: ModelConfig, images: int) -> int:
    """FLOPs of the keys and values of `images` images, in all hyper layers."""
    per_token = 2 * len(config.hyper_layers) * config.hidden_size * 2 * config.num_key_value_heads * config.head_dim
    return images * config.vision.tokens_per_image * per_token


def forward_flops(config: ModelConfig, work: Work) -> int:
    """FLOPs of a forward pass."""
    return sum(part.products + part.pairs for part in parts(config, work))


def prefill_flops(config: ModelConfig, images: int, tokens: int) -> int:
    """FLOPs from image features and a prompt's tokens to the logits of the next token."""
    text = Work.of_rows(config, 1, tokens, images)._replace(images=0, outputs=1)
    return forward_flops(config, text) + image_cache_flops(config, images)


def train_flops(config: ModelConfig, work: Work, trained: Sequence[str] = (".*",), remat: Remat = "none") -> int:
    """FLOPs of a training step that trains the parameters whose whole path matches one of the regexes `trained`.

    A product with trained parameters counts again for their gradient; one after trained parameters counts again for the
    gradient of its input. With `remat`, what it computes a second time is counted too; the model's own work is without it.
    """
    paths = flatten_dict(nn.unbox(abstract_params(config, ComputeConfig())), sep="/")
    learning = [path for path in paths if any(re.fullmatch(pattern, path) for pattern in trained)]
    again, pairs_again = _COMPUTED_AGAIN[remat]
    total, carries = 0, False
    for part in parts(config, work):
        learns = any(re.fullmatch(part.parameters, path) for path in learning)
        returns = carries or (learns and part.deep)
        repeated = returns and part.deep
        total += part.products * (1 + learns + returns + (repeated and again))
        total += part.pairs * (1 + 2 * returns + (repeated and pairs_again))
        carries = carries or learns
    return total
