"""Reads damaged images and videos: nothing may come of them but a picture, an UnreadableImage or an UnreadableVideo.

    python tools/fuzz_media.py --files 20000

Small files of every format that Pillow and FFmpeg write here are damaged at random and given to the processor's readers as
bytes, as paths, as frames of lists and in folders. Any other exception, a message that does not name the file, a crash and a
hang are faults, which are listed at the end with their numbers; the exit code is then 1. `--index N` reads file N again in
this process, and `--keep DIR` saves faulty files there. docs/results.md shows the output.
"""

import dataclasses
import sys
from pathlib import Path

import av
import PIL
import tyro
from media_fuzz import Seed, Settings, image_seeds, replay, run, video_seeds
from media_fuzz.run import damaged_file


@dataclasses.dataclass(frozen=True)
class Flags:
    """What is tried."""

    settings: tyro.conf.OmitArgPrefixes[Settings] = dataclasses.field(default_factory=Settings)
    index: int | None = None  # read this file alone, and print what came of it
    keep: Path | None = None  # save faulty files to this directory


def main() -> None:
    """Runs what the command line asks for."""
    flags = tyro.cli(Flags, description=__doc__)
    seeds = (*image_seeds(), *video_seeds())
    if flags.index is not None:
        file, outcome = replay(seeds, flags.settings, flags.index)
        _keep(file, flags.index, flags.keep)
        print(f"{file.name}: {outcome.result}\n{outcome.detail}")
        sys.exit(outcome.is_fault)
    report = run(seeds, flags.settings, show_progress=sys.stderr.isatty())
    print(f"Pillow {PIL.__version__}, PyAV {av.__version__}, {len(seeds)} whole files, seed {flags.settings.seed}\n")
    print(report.table())
    seconds, index = report.slowest
    print(f"\nslowest: file {index}, {seeds[index % len(seeds)].name}, {seconds:.1f} s")
    for fault in report.faults:
        _keep(damaged_file(seeds, flags.settings.seed, fault.index), fault.index, flags.keep)
        print(f"\nfile {fault.index}, {fault.seed}: {fault.outcome.result}\n{fault.outcome.detail}")
    sys.exit(bool(report.faults))


def _keep(file: Seed, index: int, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}{file.suffix}").write_bytes(file.content)


if __name__ == "__main__":
    main()
