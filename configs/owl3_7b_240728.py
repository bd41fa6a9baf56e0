"""mPLUG-Owl3 7B-240728, at its released size: bfloat16 activations, FSDP over all devices."""

from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig
from owl3_jax.released import NAMED_SIZES


def get_config() -> Config:
    return Config(
        model=NAMED_SIZES["7b-240728"],
        compute=ComputeConfig(dtype="bfloat16", remat="full"),
        mesh=MeshConfig(data=1, fsdp=-1),
        data=DataConfig(rows=8, tokens_per_row=4096, images_per_row=16),
    )
