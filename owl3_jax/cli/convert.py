"""Converts a released checkpoint to what this project reads, or back.

    owl3 convert --from mPLUG-Owl3-7B-240728 --to checkpoints/7b-240728 --dtype bfloat16
    owl3 convert --from checkpoints/7b-240728 --to back --to-hf
    owl3 convert --from runs/digits --to exported --to-hf
    owl3 convert --from runs/lora --to adapter --to-hf --adapter

The first makes an orbax checkpoint with config, tokenizer and processor settings next to it; the second a Hugging Face
directory, bit for bit equal to its origin if no dtype was chosen; the third such a directory from the last
checkpoint of a training run, its adapters merged; the fourth its adapters alone, as PEFT reads them.
Needs no accelerator, no PyTorch (except for `.bin` weights), and memory for one parameter.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from owl3_jax.config import DType, parse_dtype
from owl3_jax.convert.directories import to_hugging_face, to_orbax
from owl3_jax.convert.peft import to_peft
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.processing.processor import Processor


@dataclasses.dataclass(frozen=True)
class Flags:
    """Converts a checkpoint directory, official or our own, to the other kind."""

    source: Annotated[Path, tyro.conf.arg(name="from")]  # an official directory; with --to-hf, a converted one or a run's
    to: Path  # a new directory; it appears once it is complete
    to_hf: bool = False  # convert to Hugging Face's layout
    adapter: bool = False  # with --to-hf: only the adapters of a run, as a PEFT directory
    ema: bool = False  # with --to-hf: the moving average of a run's parameters (train.ema_decay)
    dtype: str = "auto"  # dtype of the parameters: bfloat16, float32; auto: unchanged


def main(argv: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    flags = tyro.cli(Flags, args=argv, description=__doc__, prog="owl3 convert")
    jax.config.update("jax_platforms", "cpu")  # nothing here is computed: leave the accelerator alone
    try:
        dtype, processor = parse_dtype(flags.dtype), find_processor(flags.source)
        convert(flags, dtype)
        if processor and not flags.adapter:
            processor.save_settings(flags.to)  # the tokenizer's files stay as they were copied
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def convert(flags: Flags, dtype: DType | None) -> None:
    """The conversion itself, under a progress bar."""
    if flags.adapter and not (flags.to_hf and dtype is None):
        raise ValueError("--adapter goes with --to-hf, and without --dtype")
    if flags.ema and (flags.adapter or not flags.to_hf):
        raise ValueError("--ema goes with --to-hf, and without --adapter")
    convert_directory = functools.partial(to_hugging_face, ema=flags.ema) if flags.to_hf else to_orbax
    line = "converted {done} of {total}"
    with Progress(None, "B", file=sys.stderr, lines_every=SECONDS_BETWEEN_LINES, line=line) as bar:
        if flags.adapter:
            to_peft(flags.source, flags.to, advance=bar.advance)
        else:
            convert_directory(flags.source, flags.to, dtype=dtype, advance=bar.advance)


def find_processor(source: Path) -> Processor | None:
    """The processor of a checkpoint; None, with a message, for weights without a tokenizer."""
    try:
        return Processor.from_pretrained(source)
    except FileNotFoundError as error:
        print(f"no processor.json will be written: {error}", file=sys.stderr)
        return None
