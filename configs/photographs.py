"""The three stages of the paper in small, on captioned photographs; `tools/three_stages.py` makes the data and runs them.

    owl3 train --config configs/photographs.py:1 --workdir runs/1 --config.start.vision SIGLIP --config.start.language QWEN2
    owl3 train --config configs/photographs.py:2 --workdir runs/2 --config.start.checkpoint runs/1

The argument is the stage. What each stage trains is the paper's ("Training Paradigm"); every number is our choice.
"""

from typing import Literal

from owl3_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessorConfig,
    StartConfig,
    TrainConfig,
    VisionConfig,
)

MODEL = ModelConfig(
    form="gated",
    vocab_size=384,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    hyper_layers=(2, 4),
    rope_theta=1e4,
    max_position_embeddings=4096,
    vision=VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
    ),
)

TRAINED = {"1": ("projector", "hyper"), "2": ("projector", "hyper", "language"), "3": ("projector", "hyper", "language")}
STEPS = {"1": 200, "2": 500, "3": 300}
PEAKS = {"1": 3e-3, "2": 3e-3, "3": 1e-3}


def get_config(stage: Literal["1", "2", "3"]) -> Config:
    return Config(
        model=MODEL,
        compute=ComputeConfig(dtype="float32", remat="full"),
        processor=ProcessorConfig(max_frames=8),  # a run without it takes that of start.checkpoint
        data=DataConfig(rows=8, tokens_per_row=256, images_per_row=6),
        start=StartConfig(inherit=stage != "1"),
        optimizer=OptimizerConfig(learning_rate=PEAKS[stage], end_learning_rate=0.0, warmup_steps=30, b2=0.98),
        train=TrainConfig(steps=STEPS[stage], trained=TRAINED[stage], frozen_dtype=None, checkpoint_every=500),
    )
