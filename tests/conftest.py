"""Set before jax starts: the CPU as eight devices, so that sharding is tested on every machine, and little time for
optimising programs that run once."""

import os

from tests.xla_flags import EIGHT_DEVICES, FAST_TO_COMPILE, KNOWN_TO_TPUS

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what tests measure and count is compiled by them
# Threads of the eight devices together. A collective holds one until all devices have come to it, and a device may wait in
# several: with as many threads as cores, all of them can wait for ever.
os.environ["NPROC"] = "32"
GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{GIVEN} {EIGHT_DEVICES} {FAST_TO_COMPILE}"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.devices()  # reads the options; libtpu, and processes that may load it, read them later
os.environ["XLA_FLAGS"] = f"{GIVEN} {EIGHT_DEVICES} {KNOWN_TO_TPUS}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-files", type=int, default=2000, help="damaged images and videos that test_fuzz_media reads")


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module():
    """A compiled program takes dozens of memory maps, of which Linux gives a process 65,530; past them LLVM crashes."""
    yield
    jax.clear_caches()
