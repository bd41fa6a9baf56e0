"""Fine-tunes a checkpoint on your own conversations: model, tokenizer and processor come from the checkpoint.

    owl3 train --config configs/finetune.py --workdir runs/mine --config.start.checkpoint DIR --config.data.sources data.jsonl

docs/data.md lists the formats that sources may have. Everything is trained unless `--config.train.trained` names parts (vision,
projector, hyper, language) or regexes of parameter paths. `--config.lora.rank 8` trains adapters alone.

Every number is our choice, small enough for two CPU cores; on accelerators raise rows and tokens_per_row.
"""

from owl3_jax.config import ComputeConfig, Config, DataConfig, OptimizerConfig, StartConfig, TrainConfig


def get_config() -> Config:
    return Config(
        compute=ComputeConfig(dtype="float32", remat="full"),
        data=DataConfig(rows=8, tokens_per_row=512, images_per_row=8, too_long="truncate"),
        start=StartConfig(inherit=True),
        optimizer=OptimizerConfig(learning_rate=2e-5, end_learning_rate=0.0, warmup_steps=10),
        train=TrainConfig(steps=1000, frozen_dtype=None, log_every=10, checkpoint_every=200),
    )
