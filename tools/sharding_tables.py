"""Writes tests/shardings/: how each mesh preset splits each released model, one line per parameter.

    python tools/sharding_tables.py

A test compares these files with the rules (`owl3_jax.sharding.RULES`), so that a change of the rules is reviewed as a change of
the tables. No device is needed.
"""

import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.params import count_params
from owl3_jax.released import NAMED_SIZES, Size
from owl3_jax.sharding import MESH_PRESETS, MeshPreset, abstract_mesh, describe, optimizer_shardings, param_shardings

DIRECTORY = Path(__file__).parents[1] / "tests/shardings"
COMPUTE = ComputeConfig(vocab_multiple=128)  # as in configs/stage1.py to stage3.py


def main() -> None:
    """Replaces all tables."""
    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    for file in DIRECTORY.glob("*.txt"):
        file.unlink()
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in tables().items():
        (DIRECTORY / name).write_text(text)
    print(f"{len(tables())} tables in {DIRECTORY}")


def tables() -> dict[str, str]:
    """File name -> text, for each model and each preset whose tensor axis divides its heads."""
    return {
        f"{size}.{preset}.txt": table(size, preset)
        for size, model in NAMED_SIZES.items()
        for preset, mesh in MESH_PRESETS.items()
        if model.num_key_value_heads % mesh.tensor == 0
    }


def table(size: Size, preset: MeshPreset) -> str:
    """How the preset splits parameters, or with `shard_optimizer` their optimizer state, on devices as it is made for."""
    config = MESH_PRESETS[preset]
    mesh = abstract_mesh(config, (16 if preset.startswith("serve") else 256) * config.slices)
    boxed = _params(NAMED_SIZES[size])
    shapes, shardings = nn.unbox(boxed), param_shardings(boxed, mesh)
    if config.shard_optimizer:
        shardings = optimizer_shardings(shardings, shapes, mesh)
    here = sum(math.prod(s.shard_shape(x.shape)) for x, s in zip(*map(jax.tree.leaves, (shapes, shardings)), strict=True))
    whole = count_params(shapes)
    axes = " x ".join(f"{name} {devices}" for name, devices in mesh.shape.items())
    what = "optimizer state" if config.shard_optimizer else "parameters"
    head = f"{size}, {what} on {mesh.size} devices: {axes}\n{here / 1e6:.1f} M of {whole / 1e6:.1f} M on each device\n\n"
    return head + "\n".join([*describe(boxed, mesh, shardings), ""])


@functools.cache
def _params(model: ModelConfig) -> dict[str, Any]:
    return abstract_params(model, COMPUTE)


if __name__ == "__main__":
    main()
