"""Checksums notice any change of any array, and none of how it is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.config import MeshConfig
from owl3_jax.sharding import make_mesh
from owl3_jax.training.checksums import checksums, names_of

TREE = {
    "params": {"w": jnp.arange(48.0).reshape(8, 6), "h": jnp.arange(7, dtype=jnp.bfloat16), "q": jnp.arange(5, dtype=jnp.int8)},
    "progress": {"step": jnp.int32(3), "rng": jax.random.key(5), "on": jnp.array([True, False])},
}


def values(tree: object) -> dict[str, int]:
    return {name: int(value) for name, value in checksums(tree).items()}


def test_every_array_has_one():
    assert names_of(TREE) == ["params.h", "params.q", "params.w", "progress.on", "progress.rng", "progress.step"]
    assert list(checksums(TREE)) == names_of(TREE)


def test_the_words_are_summed_by_their_places():
    words = np.asarray(TREE["params"]["w"]).view(np.uint32).ravel().astype(np.uint64)
    assert values(TREE)["params.w"] == int((words * (2 * np.arange(48, dtype=np.uint64) + 1)).sum() % 2**32)
    assert values({"x": jnp.array([3, 5], jnp.int8)}) == {"x": 3 + 3 * 5}


def test_no_split_changes_them():
    split = jax.sharding.NamedSharding(make_mesh(MeshConfig(data=2, fsdp=4)), jax.sharding.PartitionSpec("fsdp", "data"))
    placed = {**TREE, "params": {**TREE["params"], "w": jax.device_put(TREE["params"]["w"], split)}}
    assert placed["params"]["w"].sharding == split and values(placed) == values(TREE)


@pytest.mark.parametrize("place", [(0, 0), (3, 4), (7, 5)])
def test_one_bit_changes_one_of_them(place):
    changed = np.asarray(TREE["params"]["w"]).copy()
    changed.view(np.uint32)[place] ^= 1
    other = values({**TREE, "params": {**TREE["params"], "w": jnp.asarray(changed)}})
    assert [name for name, value in values(TREE).items() if other[name] != value] == ["params.w"]


def test_two_values_that_change_places_do():
    assert values({"x": jnp.array([1, 2, 3, 4])}) != values({"x": jnp.array([1, 3, 2, 4])})
