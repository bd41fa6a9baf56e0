"""The best that this machine can do, for the floors under measured times.

A decode step takes at least the bytes that it reads over `measure_memory_bandwidth()`, a prefill at least its FLOPs over
`measure_matmul_rate(dtype)`. Both are measured through jax, on its default device and all cores of it, so that they hold on
an accelerator too.

    python tools/roofline.py

    memory      31.9 GB/s
    float32    265.6 GFLOP/s
    bfloat16   258.7 GFLOP/s

Run it on an otherwise idle machine: the same one (2 cores) gave half of that under load.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from owl3_jax.config import DType

REPEATS = 5


def main() -> None:
    """Prints the three rates."""
    print(f"memory   {measure_memory_bandwidth() / 1e9:7.1f} GB/s")
    for dtype in ("float32", "bfloat16"):
        print(f"{dtype:<9}{measure_matmul_rate(dtype) / 1e9:7.1f} GFLOP/s")


def measure_memory_bandwidth(size: int = 2**30) -> float:
    """Bytes a second of the sum over an array of `size` bytes, far beyond every cache: it is read once, nothing is written.

    Median of five.
    """
    x = jnp.ones(size // 4, jnp.float32)
    return x.nbytes / _seconds(jax.jit(jnp.sum), x)


def measure_matmul_rate(dtype: DType, side: int = 4096) -> float:
    """FLOP/s of the product of two square matrices, 2 side^3 operations, at jax's default precision. Median of five."""
    x = jnp.ones((side, side), dtype)
    return 2 * side**3 / _seconds(jax.jit(jnp.matmul), x, x)


def _seconds(compiled: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Median time of a call, after one that compiles."""
    compiled(*arguments).block_until_ready()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        compiled(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
