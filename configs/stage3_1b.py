"""Stage 3 (supervised fine-tuning) of 1B-241014: projector and language model learn to answer."""

from owl3_jax.config import Config
from owl3_jax.recipes import stage_config


def get_config() -> Config:
    return stage_config(3, "1b-241014", mesh="fsdp", remat="full", microbatches=1)
