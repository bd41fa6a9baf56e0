"""Checksums of arrays: what they do not depend on is how the arrays are split over devices.

Storage that loses or swaps bytes without an error would otherwise be noticed by its effect on training, if ever.
"""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from owl3_jax.batch import AnyArray

Sums = dict[str, UInt32[Array, ""]]


def names_of(arrays: Mapping[str, object]) -> list[str]:
    """The names under which `checksums` gives those of a tree."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]


def checksums(arrays: Mapping[str, object]) -> Sums:
    """Of each array of a tree the sum of its words, each times an odd number that depends on its place, modulo 2**32."""
    named = dict(zip(names_of(arrays), jax.tree.leaves(arrays), strict=True))
    together: dict[frozenset[jax.Device], list[str]] = {}  # a program's arrays must be on the same devices
    for name, array in named.items():
        devices = frozenset(array.sharding.device_set) if isinstance(array, jax.Array) else frozenset()
        together.setdefault(devices, []).append(name)
    found = [zip(names, _sums([named[name] for name in names]), strict=True) for names in together.values()]
    sums = dict(itertools.chain.from_iterable(found))
    return {name: sums[name] for name in named}


def traced_checksums(arrays: Mapping[str, object]) -> Sums:
    """The same within a program."""
    return dict(zip(names_of(arrays), map(_sum, jax.tree.leaves(arrays)), strict=True))


@jax.jit
def _sums(leaves: list[AnyArray]) -> list[UInt32[Array, ""]]:
    return [_sum(leaf) for leaf in leaves]


def _sum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    word = np.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32) if x.dtype != jnp.bool_ else x.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for dim, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
