"""Stage 2 (multi-image) of 1B-241014: projector and language model learn from several images, crops and video."""

from owl3_jax.config import Config
from owl3_jax.recipes import stage_config


def get_config() -> Config:
    return stage_config(2, "1b-241014", mesh="fsdp", remat="full", microbatches=1)
