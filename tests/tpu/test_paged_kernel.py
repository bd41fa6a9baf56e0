"""The kernel that reads pages compiles for every TPU generation, at the sizes of the released models, without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from owl3_jax.attention.backends import paged
from owl3_jax.tpu.chips import CHIPS
from owl3_jax.tpu.topology import get_topology

ROWS, IMAGES, PAGES, TOKENS = 8, 64, 128, 768


@pytest.mark.parametrize(("heads", "key_heads", "size", "layers"), [(28, 4, 128, 4), (14, 2, 64, 4)])
@pytest.mark.parametrize("chip", CHIPS)
def test_it_compiles(chip: str, heads: int, key_heads: int, size: int, layers: int) -> None:
    placed = SingleDeviceSharding(get_topology(CHIPS[chip].topology).devices[0])
    given = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
    pool = given(layers, PAGES, key_heads, TOKENS, size)
    table = given(ROWS, IMAGES, dtype=jnp.int32)
    turns, layer = given(ROWS, IMAGES, 1, 2 * size, dtype=jnp.float32), given(dtype=jnp.int32)
    attend = lambda *given: paged.attend(*given, interpret=False)
    with jax.default_matmul_precision("highest"):  # as parity checks set it
        lowered = jax.jit(attend).lower(given(ROWS, heads, size), pool, pool, table, table, turns, layer)
    memory = lowered.compile().memory_analysis()
    assert lowered.as_text().count('kernel_name = "paged_attention"') == 1
    assert memory is not None and memory.temp_size_in_bytes < pool.size * 2 / 16  # no page is gathered, or copied
