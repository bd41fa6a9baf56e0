"""The architectures of the released checkpoints (arXiv 2408.04840), by the names that this project gives them.

    1b-241014   mPLUG-Owl3-1B-241014   Qwen2-0.5B
    2b-241014   mPLUG-Owl3-2B-241014   Qwen2-1.5B
    7b-240728   mPLUG-Owl3-7B-240728   Qwen2-7B
    7b-241101   mPLUG-Owl3-7B-241101   Qwen2-7B

The vision encoder of each is SigLIP so400m-patch14-384. Numbers are those of the checkpoint's config.json, except for the 2B,
whose numbers are inferred: widths, depth and heads from Qwen2-1.5B, the tied head from the published file size of 3.95 GB, the
rest from the 1B. Its four hyper layers are not published; the entry has those of 7B-240728. The form of hyper attention is the
one that a checkpoint's tensor names imply. Loading a checkpoint uses its own config.json, never this table.
"""

import dataclasses
from typing import Literal

from owl3_jax.config import ModelConfig, VisionConfig

Size = Literal["1b-241014", "2b-241014", "7b-240728", "7b-241101"]

_SIGLIP = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    image_size=384,
    patch_size=14,
    layer_norm_eps=1e-6,
)
_SIGLIP_378 = dataclasses.replace(_SIGLIP, image_size=378)  # 27 patches a side, as at 384, which drops 6 pixels

NAMED_SIZES: dict[Size, ModelConfig] = {
    "7b-240728": ModelConfig(
        form="gated",
        vocab_size=151851,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        hyper_layers=(1, 9, 17, 25),
        tie_word_embeddings=False,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        vision=_SIGLIP,
    ),
    "7b-241101": ModelConfig(
        form="joint",
        vocab_size=151651,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        hyper_layers=(7, 15, 23, 26),
        tie_word_embeddings=False,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        vision=_SIGLIP_378,
    ),
    "1b-241014": ModelConfig(
        form="static",
        vocab_size=151851,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        hyper_layers=(6, 13, 20, 22),
        tie_word_embeddings=True,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        vision=_SIGLIP,
    ),
    "2b-241014": ModelConfig(
        form="static",
        vocab_size=151851,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        hyper_layers=(1, 9, 17, 25),  # not published; see above
        tie_word_embeddings=True,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        vision=_SIGLIP,
    ),
}
