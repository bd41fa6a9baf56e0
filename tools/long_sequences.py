"""Compares two ways to show many images to the same decoder: hyper attention, and image tokens in the text as in LLaVA.

    python tools/long_sequences.py --topology v5p:1x1x1 --images 1 16 64 256 1024 4096

Both prompts have the same question and images. For the second, the programs of inference run on a text that contains all tokens
of each image, and on no images. Memory is the TPU compiler's number for prefill and decoding, operations are by formula
(`owl3_jax.flops`), both without the vision tower, which is the same. JSON and a plot go to `--out` and `--plot`.
"""

import dataclasses
import json
import sys
from pathlib import Path

from both_ways import compare, describe, draw

from owl3_jax import sharding
from owl3_jax.config import ConfigError
from owl3_jax.host import command_line
from owl3_jax.host.files import write_text
from owl3_jax.tpu.topology import TopologyError, get_topology


@dataclasses.dataclass(frozen=True)
class Flags:
    """Compares hyper attention with image tokens in the text, by memory and operations."""

    topology: str = "v5p:1x1x1"
    images: tuple[int, ...] = (1, 4, 16, 64, 256, 1024, 4096)  # images in the prompt
    out: Path | None = None  # where to write the numbers as JSON
    plot: Path | None = None  # where to draw them


def main() -> None:
    """Compiles all, prints a table, and writes the files asked for."""
    config, flags = command_line.parse(Flags)
    try:
        topology = get_topology(flags.topology)
        mesh = sharding.make_mesh(config.mesh, topology.devices)
        rows = [row for images in flags.images for row in compare(config, mesh, topology, images)]
    except (TopologyError, ConfigError) as error:
        sys.exit(f"error: {error}")
    print(describe(rows))
    if flags.out:
        write_text(flags.out, json.dumps({"topology": flags.topology, "rows": rows}, indent=2) + "\n")
    if flags.plot:
        draw(rows, flags.topology, config.model).savefig(flags.plot, dpi=120)


if __name__ == "__main__":
    main()
