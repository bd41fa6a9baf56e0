from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from owl3_jax.compilation_cache import use_compilation_cache


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_accelerators_keep_programs_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "owl3_jax" / "compiled")


def test_a_place_that_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_cpus_keep_none():
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
