"""Set before jax starts: the CPU as eight devices, so that sharding is tested on every machine, and little time for
optimising programs that run once."""

import os

from tests.xla_flags import FAST_TO_COMPILE

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what tests measure and count is compiled by them
# Threads of the eight devices together. A collective holds one until all devices have come to it, and a device may wait in
# several: with as many threads as cores, all of them can wait for ever.
os.environ["NPROC"] = "32"
FLAGS = f"--xla_force_host_platform_device_count=8 {FAST_TO_COMPILE}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-files", type=int, default=2000, help="damaged images and videos that test_fuzz_media reads")


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module():
    """A compiled program takes dozens of memory maps, of which Linux gives a process 65,530; past them LLVM crashes."""
    yield
    jax.clear_caches()
