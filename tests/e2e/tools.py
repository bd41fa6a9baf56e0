"""`owl3` as it is called, on a golden checkpoint of random weights whose answers are words without sense."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from owl3_jax.cli import main
from tests.xla_flags import EIGHT_DEVICES, FAST_TO_COMPILE

ROOT = Path(__file__).parents[2]


def make_checkpoint(directory: Path) -> Path:
    """A golden checkpoint, whose tokenizer has a word for every id of the model."""
    return shutil.copytree(ROOT / "tests/golden/tiny-241014", directory)


def save_photos(directory: Path) -> list[Path]:
    """Two photographs."""
    paths = [directory / "china.jpg", directory / "flower with blank.png"]
    for path, pixels in zip(paths, load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def run(*argv: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`owl3 ...` in a process of its own."""
    command = [sys.executable, "-c", "import owl3_jax.cli; owl3_jax.cli.main()", *map(str, argv)]
    environment = os.environ | {"XLA_FLAGS": f"{EIGHT_DEVICES} {FAST_TO_COMPILE}"}
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=300)


def run_here(*argv: object) -> int | str | None:
    """The same in this process, where compiled programs are shared; returns what it exits with."""
    return exit_code(lambda: main(list(map(str, argv))))


def run_script_here(monkeypatch, name: str, *argv: object) -> int | str | None:
    """`python tools/NAME ...` in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    return exit_code(lambda: runpy.run_path(str(ROOT / "tools" / name), run_name="__main__"))


def exit_code(call: Callable[[], object]) -> int | str | None:
    """What a call exits with; 0 if it returns."""
    try:
        call()
    except SystemExit as exit_:
        return exit_.code
    return 0
