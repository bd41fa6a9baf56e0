"""Stage 1 (pre-training) of 1B-241014: projector, `v_kv_proj` and gates learn from single images."""

from owl3_jax.config import Config
from owl3_jax.recipes import stage_config


def get_config() -> Config:
    return stage_config(1, "1b-241014", mesh="fsdp", remat="full", microbatches=1)
