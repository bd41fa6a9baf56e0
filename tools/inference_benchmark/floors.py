"""Lower bounds on time on this machine: bytes that must be read, products that must be computed."""

import numpy as np

from owl3_jax.config import ComputeConfig, DType, ModelConfig
from owl3_jax.inference.caches import image_bytes, text_bytes
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.params import count_params


def decode_bytes(config: ModelConfig, dtype: DType, images: int, tokens: int) -> int:
    """Bytes that one step of one row reads: every weight of the decoder but `v_kv_proj`, and both caches.

    Of an embedding that is not the head too, it reads one row.
    """
    decoder = dict(abstract_params(config, ComputeConfig())["language_model"])
    hyper = {name: value for name, value in decoder.pop("hyper_layers").items() if name != "v_kv_proj"}
    if not config.tie_word_embeddings:
        decoder.pop("embed_tokens")
    weights = count_params((decoder, hyper))
    compute = ComputeConfig(dtype=dtype)
    return weights * np.dtype(dtype).itemsize + image_bytes(config, compute, 1, images) + text_bytes(config, compute, 1, tokens)
