"""The first stage of the embedded default: samples with one or two images. configs/digits.py goes on from its checkpoint.

    python train.py --config configs/digits_few.py --workdir runs/digits/few

`make demo` runs both.
"""

import dataclasses
from pathlib import Path

from owl3_jax.config import Config, SourceConfig
from owl3_jax.host.command_line import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("digits.py"))
    return dataclasses.replace(
        config,
        # Few images to a row: its tokens are the first to be full.
        data=dataclasses.replace(config.data, sources=(SourceConfig("digits", split="few"),), images_per_row=9),
        optimizer=dataclasses.replace(config.optimizer, schedule="constant"),
        train=dataclasses.replace(config.train, steps=300, checkpoint_every=300),
    )
