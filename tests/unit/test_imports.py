"""What the processes that load data import: everything but jax. The package itself imports nothing before it is asked to."""

import subprocess
import sys
from pathlib import Path

import pytest

import owl3_jax

PACKAGE = Path(owl3_jax.__file__).parent
HEAVY = ("jax", "jaxlib", "flax", "orbax", "grain", "tensorstore", "tensorflow", "torch", "transformers")
CODE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2:])))
"""


def heavy_imports_of(module: str) -> str:
    """Which of `HEAVY` a fresh interpreter has loaded after it has imported `module`."""
    command = [sys.executable, "-c", CODE, module, *HEAVY]
    return subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def modules_of(*packages: str) -> list[str]:
    """Every module in these packages, by its full name."""
    files = [file for package in packages for file in sorted((PACKAGE / package).rglob("*.py"))]
    names = [file.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".") for file in files]
    return [name.removesuffix(".__init__") for name in names]


LIGHT = ["owl3_jax", "owl3_jax.config", "owl3_jax.cli.runs", "owl3_jax.serving.decode_worker"]
LIGHT += modules_of("processing", "formats", "data/readers")


def test_the_list_is_not_empty() -> None:
    assert {"owl3_jax.processing.processor", "owl3_jax.formats.checkpoint", "owl3_jax.data.readers"} <= set(LIGHT)


@pytest.mark.parametrize("module", LIGHT)
def test_nothing_heavy_is_imported(module: str) -> None:
    assert heavy_imports_of(module) == "[]"


def test_the_test_would_see_jax() -> None:
    assert "'jax'" in heavy_imports_of("owl3_jax.sharding")


@pytest.mark.parametrize("name", ["from_pretrained", "Owl3Checkpoint", "Processor", "Sampling"])
def test_public_names_come_from_the_package(name: str) -> None:
    assert getattr(owl3_jax, name).__name__ == name
    assert name in dir(owl3_jax)


def test_an_unknown_name_is_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'owl3_jax' has no attribute 'from_pretraned'"):
        owl3_jax.from_pretraned  # noqa: B018


def test_private_functions_of_jax_are_looked_up_in_one_file() -> None:
    files = [file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob("*.py") if "jax._src" in file.read_text()]
    assert files == ["private_jax.py"]
