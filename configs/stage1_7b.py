"""Stage 1 (pre-training) of 7B-240728: projector, `v_kv_proj` and gates learn from single images."""

from owl3_jax.config import Config
from owl3_jax.recipes import stage_config


def get_config() -> Config:
    return stage_config(1, "7b-240728", mesh="fsdp", remat="full", microbatches=1)
