"""The three training stages of the paper (arXiv 2408.04840, section on training), for every released size.

From the paper: trained parts, learning rates, warm-up, global batches, steps, text lengths and images. It does not tell
the optimizer, the decay's shape, clipping and weight decay: AdamW with `OptimizerConfig`'s betas, a cosine, a gradient
norm of at most 1 and no weight decay are our choice. So are float32 for trained parameters and bfloat16 for the
frozen ones and all activations, and how a batch is divided; the authors trained with ZeRO 1 and tensor parallelism of 4.

Batches are synthetic, of the real shapes.
"""

import dataclasses

from owl3_jax.config import MESH_PRESETS, ComputeConfig, Config, DataConfig, MeshPreset, OptimizerConfig, Remat, TrainConfig
from owl3_jax.released import NAMED_SIZES

_PROJECTOR, _HYPER_LAYERS, _LANGUAGE_MODEL = "vision2text_model/.*", "language_model/hyper_layers/.*", "language_model/.*"
VOCAB_MULTIPLE = 128  # for any tensor axis to divide 151,851 words
_WARMUP = 0.03  # of the steps


@dataclasses.dataclass(frozen=True)
class Stage:
    """What distinguishes a stage from the others."""

    trained: tuple[str, ...]
    learning_rate: float  # peak
    end_learning_rate: float
    rows: int  # of a batch over all devices
    steps: int
    tokens_per_row: int
    images_per_row: int


_FINE = Stage(
    trained=(_PROJECTOR, _LANGUAGE_MODEL),
    learning_rate=2e-5,
    end_learning_rate=1e-7,
    rows=1024,
    steps=3000,
    tokens_per_row=4096,
    images_per_row=7,  # six crops and the whole image
)
STAGES = {
    1: Stage(
        trained=(_PROJECTOR, _HYPER_LAYERS),
        learning_rate=1e-3,
        end_learning_rate=1e-5,
        rows=2048,
        steps=20_000,
        tokens_per_row=768,
        images_per_row=1,
    ),
    2: _FINE,
    3: dataclasses.replace(_FINE, steps=11_000),
}


def stage_config(number: int, size: str, *, mesh: MeshPreset, remat: Remat, microbatches: int) -> Config:
    """The config of stage 1 (pre-training), 2 (multi-image) or 3 (supervised fine-tuning).

    Args:
        size: a key of `NAMED_SIZES`.
        mesh, remat, microbatches: how it is made to fit the devices; they do not change the result.
    """
    stage = STAGES[number]
    return Config(
        model=NAMED_SIZES[size],
        compute=ComputeConfig(dtype="bfloat16", remat=remat, vocab_multiple=VOCAB_MULTIPLE),
        mesh=MESH_PRESETS[mesh],
        data=DataConfig(
            dataset="synthetic",
            rows=stage.rows,
            tokens_per_row=stage.tokens_per_row,
            images_per_row=stage.images_per_row,
        ),
        optimizer=OptimizerConfig(
            learning_rate=stage.learning_rate,
            end_learning_rate=stage.end_learning_rate,
            warmup_steps=round(_WARMUP * stage.steps),
        ),
        train=TrainConfig(steps=stage.steps, trained=stage.trained, microbatches=microbatches),
    )
