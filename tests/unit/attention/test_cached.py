"""Attention a few heads at a time, as CPUs compute it, is attention to all heads at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.attention.backends import TABLE, cached, xla
from owl3_jax.attention.inputs import BlockInputs
from owl3_jax.attention.visibility import everything, visibility
from tests.tolerances import MODULE

HEADS, KEY_HEADS, POSITIONS, KEYS = 12, 6, 8, 16


def inputs(rows: int, *, masked: bool, real_tokens: int | None = None) -> BlockInputs:
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (rows, HEADS, POSITIONS, 4))
    k, v = (jax.random.normal(key, (rows, KEY_HEADS, KEYS, 4)) for key in keys[1:])
    seen = None
    if masked:  # each row sees something else, and some positions nothing
        positions = jnp.arange(POSITIONS)[None] + 3 * jnp.arange(rows)[:, None]
        segment_ids = (positions % 5 != 0).astype(jnp.int32)
        key_positions = jnp.broadcast_to(jnp.arange(KEYS), (rows, KEYS))
        seen = visibility(positions, segment_ids, key_positions, jnp.ones_like(key_positions))
    elif rows > 1:
        seen = everything(rows, POSITIONS, KEYS)
    return BlockInputs(q, k, v, seen, real_tokens)


@pytest.mark.parametrize("heads_at_once", [0, 1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize(
    "given", [inputs(1, masked=False), inputs(3, masked=True), inputs(2, masked=False), inputs(1, masked=False, real_tokens=11)]
)
def test_any_number_of_heads_at_once_gives_the_same(monkeypatch, given, heads_at_once):
    monkeypatch.setattr(cached, "_CACHE_BYTES", heads_at_once * 4 * HEADS // KEY_HEADS * POSITIONS * KEYS)
    found, wanted = cached.attend(given), xla.attend(given)
    np.testing.assert_allclose(found.out, wanted.out, atol=MODULE)
    np.testing.assert_allclose(found.lse, wanted.lse, atol=MODULE)


def test_scores_of_all_heads_are_nowhere(monkeypatch):
    monkeypatch.setattr(cached, "_CACHE_BYTES", 2 * 4 * HEADS // KEY_HEADS * POSITIONS * KEYS)
    jaxpr = str(jax.make_jaxpr(cached.attend)(inputs(3, masked=True)))
    of_scores = lambda rows, heads: f"f32[{rows},{heads},{HEADS // KEY_HEADS * POSITIONS},{KEYS}]"
    assert of_scores(1, 2) in jaxpr
    assert of_scores(3, KEY_HEADS) not in jaxpr


def test_cpus_take_it_by_default():
    assert [row.on_cpu.attend for row in TABLE if row.setting == "auto"][-1] is cached.attend
