"""A released size on all devices, to compile, to measure and to start from: every number of the run is our choice.

    owl3 compile --config configs/released.py:1b-241014 --topology v5e:4x4

The argument is the size. Stages 1 to 3 of the paper have configs of their own.
"""

from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig
from owl3_jax.released import NAMED_SIZES, Size


def get_config(size: Size) -> Config:
    return Config(
        model=NAMED_SIZES[size],
        compute=ComputeConfig(dtype="bfloat16", param_dtype="float32", remat="full"),
        mesh=MeshConfig(data=1, fsdp=-1),  # parameters split over all devices
        data=DataConfig(rows=8, tokens_per_row=4096, images_per_row=16),
    )
