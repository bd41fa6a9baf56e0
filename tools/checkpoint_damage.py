"""Ways in which the files of a checkpoint get damaged, for tests and the fault campaign."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

_BITS = 0x55


def _data_files(item: Path) -> list[Path]:
    """Those with the arrays of an item of a checkpoint; of some there are two, and only one is read."""
    return [path for path in item.rglob("*") if path.parent.name == "d"]


def _delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()


def _cut(paths: list[Path], size: int) -> None:
    for path in paths:
        os.truncate(path, size)


def _flip(paths: list[Path]) -> None:
    """Some bits in the middle of each file."""
    for path in paths:
        content = bytearray(path.read_bytes())
        if content:
            content[len(content) // 2] ^= _BITS
            path.write_bytes(content)


def _swap(checkpoint: Path) -> None:
    """The parameters of the checkpoint before, in perfect order."""
    before = max((path for path in checkpoint.parent.iterdir() if int(path.name) < int(checkpoint.name)), key=_number)
    shutil.rmtree(checkpoint / "params")
    shutil.copytree(before / "params", checkpoint / "params")


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name)


# By name, what is done to the folder of a checkpoint. Those that swap something need an earlier one beside it.
DAMAGES: dict[str, Callable[[Path], None]] = {
    "files are gone": lambda checkpoint: _delete(_data_files(checkpoint / "params")),
    "files are cut": lambda checkpoint: _cut(_data_files(checkpoint / "params"), 10),
    "files are empty": lambda checkpoint: _cut(_data_files(checkpoint / "progress"), 0),
    "bits are flipped": lambda checkpoint: _flip(_data_files(checkpoint / "data")),
    "an item is gone": lambda checkpoint: shutil.rmtree(checkpoint / "progress"),
    "an item is another one's": _swap,
    "the description is gone": lambda checkpoint: shutil.rmtree(checkpoint / "run"),
    "the description is cut": lambda checkpoint: os.truncate(checkpoint / "run" / "metadata", 20),
}
