"""Makes a checkpoint in the official layout with random weights, in the real shapes of a released one.

    python tools/make_random_checkpoint.py --size 1b-241014 --to /tmp/random-1b

For measurements that need no trained weights: time and memory of conversion, loading and generation. It holds one tensor in
memory at a time.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from owl3_jax.config import DType, ModelConfig, VisionConfig
from owl3_jax.convert.converted import new_directory
from owl3_jax.convert.official import parameter_shapes
from owl3_jax.convert.table import official_names, official_shape, row_shape
from owl3_jax.formats.config_json import config_json_of
from owl3_jax.formats.weight_writer import TensorSpec, WeightWriter
from owl3_jax.host.progress import Progress
from owl3_jax.released import NAMED_SIZES, Size


@dataclasses.dataclass(frozen=True)
class Flags:
    """Makes a checkpoint with random weights."""

    size: Size  # the released checkpoint whose shapes it has
    to: Path  # a new directory
    dtype: DType = "bfloat16"
    seed: int = 0


def main() -> None:
    """Writes the checkpoint that the command line asks for."""
    flags = tyro.cli(Flags)
    config = NAMED_SIZES[flags.size]
    specs = list(tensor_specs(config, np.dtype(flags.dtype)))
    random = np.random.default_rng(flags.seed)
    with (
        new_directory(flags.to) as directory,
        Progress(sum(spec.nbytes for spec in specs), "B", file=sys.stderr) as bar,
    ):
        (directory / "config.json").write_text(
            json.dumps(config_json_of(config) | {"torch_dtype": flags.dtype}, indent=2) + "\n"
        )
        writer = WeightWriter(directory, specs)
        for spec in specs:
            values = random.standard_normal(math.prod(spec.shape), np.float32) * 0.02
            writer.write(spec.name, values.astype(spec.dtype).reshape(spec.shape))
            bar.advance(spec.nbytes)


def tensor_specs(config: ModelConfig, dtype: np.dtype) -> Iterator[TensorSpec]:
    """All tensors of a checkpoint, including those that the model never reads."""
    for entry, shape in parameter_shapes(config).items():
        for name in official_names(entry, config):
            yield TensorSpec(name, dtype, official_shape(entry, row_shape(entry, shape)))
    for name, shape in unused_shapes(config.vision).items():
        yield TensorSpec(f"vision_model.{name}", dtype, shape)


def unused_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """SigLIP's last block, its final norm and its pooling head."""
    width, hidden = config.hidden_size, config.intermediate_size
    norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    linear = lambda name, rows, columns: {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    mlp = lambda name: linear(f"{name}.fc1", hidden, width) | linear(f"{name}.fc2", width, hidden)
    block = f"encoder.layers.{config.num_hidden_layers - 1}"
    shapes = norm(f"{block}.layer_norm1") | norm(f"{block}.layer_norm2") | mlp(f"{block}.mlp")
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear(f"{block}.self_attn.{projection}", width, width)
    shapes |= norm("post_layernorm") | norm("head.layernorm") | mlp("head.mlp")
    shapes |= {"head.probe": (1, 1, width), "head.attention.in_proj_weight": (3 * width, width)}
    return shapes | {"head.attention.in_proj_bias": (3 * width,)} | linear("head.attention.out_proj", width, width)


if __name__ == "__main__":
    main()
