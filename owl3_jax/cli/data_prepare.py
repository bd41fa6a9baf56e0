"""Writes records of any sources, with their images and videos, as files that training reads fast from any place.

    owl3 data prepare train.jsonl extra.json --to prepared
    owl3 train --config configs/finetune.py ... --config.data.sources prepared

Bytes of images and videos are kept as they are, unless --longest shrinks images. A preparation that is stopped goes on when
the same command is given again, and ends with the same bytes. Several machines that share a folder divide the work:

    owl3 data prepare train.jsonl --to prepared --part 0/16     each machine with its own number, in any order
    owl3 data prepare train.jsonl --to prepared                 at the end, once: completes the folder
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from owl3_jax.config import Config, ConfigError, SourceConfig
from owl3_jax.data.prepare import SKIPPED, Part, prepare
from owl3_jax.data.sources import fingerprint, open_source, prepare_sources
from owl3_jax.host import command_line
from owl3_jax.host.files import unwritable
from owl3_jax.host.progress import SECONDS_BETWEEN_LINES, Progress
from owl3_jax.host.workers import WorkerDiedError

_RECORDS_PER_SHARD = 1000


@dataclasses.dataclass(frozen=True)
class Flags:
    """Writes records of any sources, with their images and videos, as ArrayRecord files in one folder.

    Records that cannot be stored are left out, and listed in skipped.jsonl.
    """

    to: Path  # a new folder, or one that the same command has begun
    sources: tyro.conf.Positional[tuple[SourceConfig, ...]] = ()  # by default those of the config; weights are ignored
    longest: int | None = None  # pixels of an image's longer side, at most: larger ones are shrunk
    shards: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: one for 1,000 records)")] = 0  # files
    part: str | None = None  # K/N: write the files of machine K (from 0) of N only; without it, complete the folder
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="(default: all cores)")] = 0  # processes


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares what the command line names."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 data prepare", needs_config=False)
    try:
        run(config, flags)
    except WorkerDiedError as error:
        sys.exit(f"error: {error}; the same command goes on where it stopped")
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def run(config: Config, flags: Flags) -> None:
    """The preparation itself, under a progress bar."""
    if min(flags.shards, flags.workers) < 0 or (flags.longest is not None and flags.longest < 1):
        raise ConfigError("--shards, --workers and --longest must be positive")
    if problem := unwritable(flags.to):
        raise ConfigError(f"--to {flags.to}: {problem}")
    part = _part(flags.part)
    chosen = flags.sources or config.data.sources
    data = dataclasses.replace(config.data, sources=tuple(chosen))
    prepare_sources(data)
    sources = [open_source(source, data) for source in chosen]
    total = sum(map(len, sources))
    shards = flags.shards or -(-total // _RECORDS_PER_SHARD)
    own = part.num_records(total, shards) if part else total
    line = "prepared {done} of {total} records"
    with Progress(own, "record", file=sys.stderr, lines_every=SECONDS_BETWEEN_LINES, line=line) as bar:
        skipped = prepare(
            sources,
            flags.to,
            shards=shards,
            longest=flags.longest,
            workers=flags.workers or os.cpu_count() or 1,
            described=[f"{dataclasses.replace(source, weight=None)!r} {fingerprint(source)}" for source in chosen],
            advance=bar.advance,
            part=part,
        )
    if part:
        print(f"part {flags.part} is in {flags.to}; when all are, the same command without --part completes it")
        return
    print(f"{total - len(skipped)} of {total} records are in {flags.to}")
    if skipped:
        print(f"{len(skipped)} could not be stored; {flags.to / SKIPPED} says why")


def _part(text: str | None) -> Part | None:
    if text is None:
        return None
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(*map(int, numbers.groups())) if numbers else Part(0, 0)
    if part.index >= part.count:
        raise ConfigError(f"--part is {text!r}; it must be K/N with K from 0 to N - 1")
    return part
