"""The embedded default: a 260 k parameter mPLUG-Owl3 that learns to read real handwritten digits in minutes.

    python train.py --config configs/digits.py --workdir runs/digits
    python eval.py --config configs/digits.py --workdir runs/digits

Every number is our choice. docs/results.md shows the scores it reaches.
"""

from owl3_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ProcessorConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            form="gated",
            vocab_size=96,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            hyper_layers=(1, 3),
            tie_word_embeddings=True,
            rope_theta=1e4,
            max_position_embeddings=4096,
            initializer_range=1.0,
            vision=VisionConfig(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=8,
                patch_size=2,
            ),
        ),
        # On a CPU, computing a layer again takes less time than keeping what its backward pass needs.
        compute=ComputeConfig(dtype="float32", remat="full", images_per_chunk=16),
        processor=ProcessorConfig(tokenizer="digits"),
        data=DataConfig(sources=(SourceConfig("digits"),), rows=16, tokens_per_row=256, images_per_row=12),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            end_learning_rate=0.0,
            warmup_steps=50,
            b2=0.98,
            weight_decay=0.05,
        ),
        train=TrainConfig(steps=3000, shift_pixels=1, log_every=50, checkpoint_every=1000),
        eval=EvalConfig(),
    )
