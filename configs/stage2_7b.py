"""Stage 2 (multi-image) of 7B-240728: projector and language model learn from several images, crops and video."""

from owl3_jax.config import Config
from owl3_jax.recipes import stage_config


def get_config() -> Config:
    return stage_config(2, "7b-240728", mesh="fsdp", remat="full", microbatches=1)
