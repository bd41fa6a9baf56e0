"""The checkpoints that ship with the package, by name."""

from pathlib import Path

BUNDLED = ("digits",)  # trained by `make demo`; its metrics.json has the scores
_DIRECTORY = Path(__file__).parents[1] / "bundled"


def bundled_checkpoint(name: str) -> Path:
    """The directory of a checkpoint in `BUNDLED`."""
    return _DIRECTORY / name


def find_checkpoint(path: str | Path) -> Path:
    """The directory `path`; if there is none and `path` is a name in `BUNDLED`, the directory of that checkpoint."""
    directory = Path(path)
    return bundled_checkpoint(str(path)) if str(path) in BUNDLED and not directory.exists() else directory
