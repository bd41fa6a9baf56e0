"""Converts a released checkpoint to what this project reads, or back.

    python tools/convert_checkpoint.py --from mPLUG-Owl3-7B-240728 --to checkpoints/7b-240728 --dtype bfloat16
    python tools/convert_checkpoint.py --from checkpoints/7b-240728 --to back --to-hf

The first makes an orbax checkpoint with config, tokenizer and processor settings beside it, the second a Hugging Face
directory, tensor by tensor and bit by bit what it came from if no dtype was chosen. Needs no accelerator, no PyTorch
(but for `.bin` weights), and memory for one parameter.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from owl3_jax.config import DType
from owl3_jax.convert.directories import to_hugging_face, to_orbax


@dataclasses.dataclass(frozen=True)
class Flags:
    """Converts a checkpoint directory, official or converted, to the other kind."""

    source: Annotated[Path, tyro.conf.arg(name="from")]  # a directory with weights, config.json and tokenizer files
    to: Path  # a new directory; it appears when all of it is written
    to_hf: bool = False  # back to Hugging Face's layout
    dtype: DType | None = None  # of the parameters; as they are by default


def main() -> None:
    """Converts what the command line names."""
    flags = tyro.cli(Flags, description=__doc__)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing here is computed: leave the accelerator alone
    convert = to_hugging_face if flags.to_hf else to_orbax
    with tqdm(unit="B", unit_scale=True, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        try:
            convert(flags.source, flags.to, dtype=flags.dtype, advance=advance)
        except (ValueError, OSError) as error:
            bar.close()
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
