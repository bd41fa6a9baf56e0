"""Official checkpoint directories for these tests: copies of golden ones, with changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from owl3_jax.formats.weight_files import find_tensors

GOLDEN = Path(__file__).parents[2] / "golden"
Tensors = dict[str, np.ndarray]


def golden_tensors(name: str = "tiny-240728") -> Tensors:
    """All tensors of a golden checkpoint, read by the safetensors library."""
    return {key: value for file in (GOLDEN / name).glob("*.safetensors") for key, value in load_file(file).items()}


def contents(directory: Path) -> dict[str, tuple]:
    """Name -> (dtype, shape, bytes) of each tensor in a checkpoint directory, read by us."""
    return {name: (t.dtype, t.shape, t.read().tobytes()) for name, t in find_tensors(directory).items()}


def write_checkpoint(directory: Path, tensors: Tensors, name: str = "tiny-240728") -> Path:
    """A directory with one file of `tensors` and the config.json of a golden checkpoint."""
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(GOLDEN / name / "config.json", directory / "config.json")
    return directory


def edited(directory: Path, edit: Callable[[Tensors], object], name: str = "tiny-240728") -> Path:
    """A golden checkpoint whose tensors `edit` has changed in place."""
    tensors = golden_tensors(name)
    edit(tensors)
    return write_checkpoint(directory, tensors, name)


def change_config(directory: Path, **changes: object) -> None:
    """Changes settings in a directory's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
