"""The error of everything that reads or converts a checkpoint."""

from collections.abc import Iterable
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message lists everything that is wrong with it."""

    def __init__(self, directory: Path, problems: Iterable[str]) -> None:
        super().__init__("\n  ".join([f"{directory} is not a checkpoint that can be loaded:", *problems]))
