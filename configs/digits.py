"""The embedded default: a 265 k parameter mPLUG-Owl3 that learns to read real handwritten digits in minutes.

    python train.py --config configs/digits_few.py --workdir runs/digits/few
    python train.py --config configs/digits.py --workdir runs/digits --config.start.checkpoint runs/digits/few
    python eval.py --config configs/digits.py --workdir runs/digits

The first stage shows one or two images at a time, this one up to 16. It also learns from random parameters, later. Every number
is our choice. docs/results.md shows the scores it reaches.
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
            form="joint",  # a placeholder sees its own image, which is what questions by index need
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
        data=DataConfig(
            sources=(SourceConfig("digits"), SourceConfig("digits", split="many")),  # up to 8 images, and 12 or 16
            rows=12,
            tokens_per_row=240,
            images_per_row=16,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=8e-3,
            end_learning_rate=0.0,
            warmup_steps=50,
            b2=0.98,
            weight_decay=0.05,
        ),
        train=TrainConfig(steps=1200, shift_pixels=1, log_every=50, checkpoint_every=600),
        eval=EvalConfig(
            tasks=("digits_exact", "digits_distractors"),
            distractor_images=(1, 2, 5, 10, 20, 50, 100),
            vision_batch_size=256,
            feature_cache_gb=0.0,  # encoding a tiny image takes less time than looking it up
        ),
    )
