"""Below what no time can go on this machine: bytes that must be read, products that must be made."""

import math
from typing import NamedTuple

import jax
import numpy as np

from owl3_jax.config import ComputeConfig, DType, ModelConfig
from owl3_jax.inference.caches import image_bytes, text_bytes
from owl3_jax.models.owl3 import abstract_params


class Machine(NamedTuple):
    """Measured by `tools/roofline.py`."""

    bytes_per_s: float
    flops_per_s: float


def decode_bytes(config: ModelConfig, dtype: DType, images: int, tokens: int) -> int:
    """Bytes that one step of one row reads: every weight of the decoder but `v_kv_proj`, and both caches.

    Of an embedding that is not the head too, it reads one row.
    """
    decoder = dict(abstract_params(config, ComputeConfig())["language_model"])
    hyper = {name: value for name, value in decoder.pop("hyper_layers").items() if name != "v_kv_proj"}
    if not config.tie_word_embeddings:
        decoder.pop("embed_tokens")
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((decoder, hyper)))
    compute = ComputeConfig(dtype=dtype)
    return weights * np.dtype(dtype).itemsize + image_bytes(config, compute, 1, images) + text_bytes(config, compute, 1, tokens)


def prefill_flops(config: ModelConfig, images: int, tokens: int) -> int:
    """Operations of a prefill with features given: the matrix products, counting what is visible only.

    An image is seen by the text behind it; with placeholders evenly spread, about half of all pairs.
    """
    E, F, H, K, D = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    N, M, L = config.num_hidden_layers, len(config.hyper_layers), config.vision.tokens_per_image
    layers = 2 * tokens * N * (E * D * (2 * H + 2 * K) + 3 * E * F)
    text_pairs, image_pairs = tokens * (tokens + 1) // 2, tokens * images * L // 2
    attention = 4 * H * D * (N * text_pairs + M * image_pairs)
    keys_values = 2 * images * L * M * E * 2 * K * D
    return layers + attention + keys_values + 2 * E * config.vocab_size
