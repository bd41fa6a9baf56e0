import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from owl3_jax.host import processor
from owl3_jax.host.compilation_cache import use_compilation_cache

PROGRAM = """
import jax, jax.numpy as jnp
from jax._src import monitoring
from owl3_jax.host.compilation_cache import use_compilation_cache

found = []
monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
use_compilation_cache()
jax.jit(lambda x, i: jnp.tanh(x @ x).at[i].add(x[i]))(jnp.ones((8, 8)), jnp.arange(3)).block_until_ready()
print(found.count("cache_misses"), found.count("cache_hits"))
"""


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "owl3_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_place_that_was_asked_for_stays():
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_each_kind_of_processor_has_programs_of_its_own(user_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directories = []
    for flags in ("fpu avx2", "fpu avx2 avx512f", "fpu avx2", None):
        monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo" if flags else tmp_path / "none")
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n\nprocessor : 1\nflags : {flags}\n")
        jax.config.update("jax_compilation_cache_dir", None)
        use_compilation_cache()
        directories.append(Path(jax.config.jax_compilation_cache_dir))
    assert directories[0] == directories[2] and len(set(directories)) == 3
    assert {directory.parent for directory in directories} == {user_cache}


def test_a_second_process_takes_its_programs_from_the_first_ones_and_warns_of_nothing():
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    run = lambda: subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    first, second = run(), run()
    compiled, taken = map(int, first.stdout.split())
    assert compiled > 0 and taken == 0
    assert second.stdout.split() == ["0", str(compiled)]
    assert first.stderr == second.stderr == ""
