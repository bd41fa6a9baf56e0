"""Stage 2 of the paper, multi-image training: projector and language model learn from several images, crops and video.

    owl3 train --config configs/stage2.py:7b-240728 --workdir runs/stage2

The argument is a released size. "Paper" marks what arXiv 2408.04840 gives in "Training Paradigm" and its table of training
settings. It does not specify the optimizer, the shape of the decay, clipping or weight decay: those are our choice, and so are
the dtypes and how a batch is divided. The authors trained with ZeRO-1, a tensor parallelism of 4 and gradient checkpointing.
Batches are synthetic, of the real shapes.
"""

from owl3_jax.config import (
    ComputeConfig,
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ProcessorConfig,
    SourceConfig,
    TrainConfig,
)
from owl3_jax.released import NAMED_SIZES, Size


def get_config(size: Size) -> Config:
    return Config(
        model=NAMED_SIZES[size],
        # How it is made to fit; none of this changes the result.
        compute=ComputeConfig(
            dtype="bfloat16",
            param_dtype="float32",
            remat="full",
            vocab_multiple=128,  # for any tensor axis to divide the vocabulary
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        processor=ProcessorConfig(tokenizer="digits"),  # the embedded one, enough for synthetic text
        data=DataConfig(
            sources=(SourceConfig("synthetic"),),
            rows=1024,  # paper: the global batch
            tokens_per_row=4096,  # paper
            images_per_row=7,  # paper: up to six crops, and the whole image
        ),
        optimizer=OptimizerConfig(  # AdamW and a cosine: our choice
            learning_rate=2e-5,  # paper
            end_learning_rate=1e-7,  # paper
            warmup_steps=90,  # paper: 3 % of the steps
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=3_000,  # paper
            trained=(  # paper: linear projection, full language model
                "vision2text_model/.*",
                "language_model/.*",
            ),
            frozen_dtype="bfloat16",
            microbatches=1,
        ),
    )
