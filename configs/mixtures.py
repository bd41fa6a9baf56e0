"""The paper's three stages on its mixtures of data (arXiv 2408.04840), with places for the paths.

    owl3 data check --config configs/mixtures.py:3/7b-240728 --config.start.checkpoint runs/stage2 --json report.json
    owl3 train --config configs/mixtures.py:1/7b-240728 --workdir runs/stage1 --config.start.vision DIR \\
        --config.start.language DIR
    owl3 train --config configs/mixtures.py:2/7b-240728 --workdir runs/stage2 --config.start.checkpoint runs/stage1
    owl3 train --config configs/mixtures.py:3/7b-240728 --workdir runs/stage3 --config.start.checkpoint runs/stage2

The argument is the stage and the released size. The stages are those of stage1.py, stage2.py and stage3.py; only the data
differs.

Put your own paths into `MIXTURES`: files, folders or buckets in any form that docs/data.md lists, or links in the folder
`mixtures/`. The numbers are the paper's percentages of the samples. They add up to about 100, because the paper rounds them;
shares are relative, so a source that you do not have can be deleted. Several of these collections were never published as they
were used.

Crops: the paper crops all text-rich samples of stage 3, a fifth of its other single images, and neither videos nor samples with
several images. It does not say which sources count as text-rich, nor what stage 2 crops; the shares below are our choice.
"""

import dataclasses
from pathlib import Path

from owl3_jax.config import Config, ConfigError, SourceConfig
from owl3_jax.host.command_line import load_config

_SINGLE, _TEXT_RICH, _NEVER = 0.2, 1.0, 0.0  # share of the samples that are cropped
_FRAMES, _ROW_IMAGES = 8, 16  # of a video, and of a row of stages 2 and 3, which packs samples: our choice

MIXTURES: dict[str, tuple[SourceConfig, ...]] = {
    "1": (  # captions; a row has one image, so that nothing is cropped
        SourceConfig("mixtures/datacomp-1b", weight=35.2, crop=_NEVER),
        SourceConfig("mixtures/laion-en", weight=26.1, crop=_NEVER),
        SourceConfig("mixtures/coyo", weight=14.5, crop=_NEVER),
        SourceConfig("mixtures/coyo-ocr", weight=9.6, crop=_NEVER),
        SourceConfig("mixtures/laion-zh", weight=7.7, crop=_NEVER),
        SourceConfig("mixtures/wukong", weight=5.6, crop=_NEVER),
        SourceConfig("mixtures/cc12m", weight=0.8, crop=_NEVER),
        SourceConfig("mixtures/other-captions", weight=0.5, crop=_NEVER),
    ),
    "2": (
        SourceConfig("mixtures/sharegptvideo", weight=34.6, crop=_NEVER, max_frames=_FRAMES),
        SourceConfig("mixtures/selective-caption", weight=19.3, crop=_NEVER),
        SourceConfig("mixtures/llava-interleave", weight=16.7, crop=_NEVER),
        SourceConfig("mixtures/vatex", weight=15.8, crop=_NEVER, max_frames=_FRAMES),
        SourceConfig("mixtures/text-reading", weight=7.4, crop=_TEXT_RICH),
        SourceConfig("mixtures/interleaved-caption", weight=5.3, crop=_NEVER),
        SourceConfig("mixtures/mmdu", weight=1.0, crop=_NEVER),
    ),
    "3": (
        SourceConfig("mixtures/llava-sft-665k", weight=58.0, crop=_SINGLE),
        SourceConfig("mixtures/the-cauldron", weight=12.5, crop=_SINGLE),
        SourceConfig("mixtures/mantis", weight=10.4, crop=_NEVER),
        SourceConfig("mixtures/llava-interleave", weight=9.3, crop=_NEVER),
        SourceConfig("mixtures/allava", weight=7.0, crop=_SINGLE),
        SourceConfig("mixtures/sharegptvideo-qa", weight=2.0, crop=_NEVER, max_frames=_FRAMES),
        SourceConfig("mixtures/video-instruct", weight=0.8, crop=_NEVER, max_frames=_FRAMES),
        SourceConfig("mixtures/msrvtt-msvd", weight=0.1, crop=_NEVER, max_frames=_FRAMES),
    ),
}


def get_config(argument: str) -> Config:
    stage, _, size = argument.partition("/")
    if stage not in MIXTURES:
        raise ConfigError(
            f"{argument!r} names no stage: give STAGE/SIZE with a stage of {', '.join(MIXTURES)}, such as 3/7b-240728"
        )
    config = load_config(f"{Path(__file__).with_name(f'stage{stage}.py')}:{size}")
    images = 1 if stage == "1" else _ROW_IMAGES
    # Real data has samples that do not fit into a row.
    data = dataclasses.replace(config.data, sources=MIXTURES[stage], images_per_row=images, too_long="truncate")
    return dataclasses.replace(config, data=data)
