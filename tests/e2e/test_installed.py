"""What `pip install` brings: the command `owl3`, run from a folder that has nothing of this clone in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/tiny-240728"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package as its wheel holds it, built from a copy: a build leaves files in the tree."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "owl3_jax", source / "owl3_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)
    return site


@pytest.fixture
def owl3(installed, tmp_path):
    """Runs the installed command in an empty folder; returns what it prints."""

    def run(*argv: object) -> str:
        command = [sys.executable, installed / "bin/owl3", *map(str, argv)]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_package_is_the_installed_one(installed, tmp_path):
    program = "import owl3_jax, owl3_jax.cli; print(owl3_jax.__file__)"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(installed)
    assert {path.name for path in installed.iterdir() if path.is_dir() and "-" not in path.name} <= {"owl3_jax", "bin"}


def test_it_lists_its_subcommands(owl3):
    assert "generate" in owl3() == owl3("--help")


def test_it_answers_and_converts_there_and_back(owl3, tmp_path):
    Image.fromarray(np.arange(27 * 31 * 3, dtype=np.uint8).reshape(27, 31, 3)).save(tmp_path / "photo.png")
    owl3("convert", "--from", GOLDEN, "--to", "converted")
    owl3("convert", "--from", "converted", "--to", "back", "--to-hf")
    before, after = (tensors(directory) for directory in (GOLDEN, tmp_path / "back"))
    assert before == after != {}
    ask = ("--image", "photo.png", "--prompt", "What is this?", "--max-new-tokens", 4)
    assert owl3("generate", "--checkpoint", "back", *ask).count("\n") == 1


def test_it_brings_a_trained_checkpoint(owl3):
    ask = ("--image", ROOT / "docs/images/red_seven.png", "--prompt", "Which digit is red?")
    assert owl3("generate", "--checkpoint", "digits", *ask) == "red 7\n"


def test_it_compiles_for_a_tpu(owl3):
    printed = owl3("compile", "--config", ROOT / "configs/digits.py", "--topology", "v5e:1x1")
    assert "v5e:1x1, 1 chips" in printed and "fits" in printed


def tensors(directory: Path) -> dict[str, bytes]:
    files = [load_file(path) for path in directory.glob("*.safetensors")]
    return {name: tensor.tobytes() for file in files for name, tensor in file.items()}


def test_it_compares_with_recorded_numbers(owl3):
    printed = owl3("parity", "--checkpoint", GOLDEN, "--cases", f"{GOLDEN}.npz")
    *_, last = printed.splitlines()
    agreeing, _, all_rows, *_ = last.split()
    assert agreeing == all_rows != "0" and last.endswith("agree within 0.0001")
