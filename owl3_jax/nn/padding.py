"""Padding to whole multiples."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def pad_to_multiple(x: Shaped[Array, "..."], axis: int, multiple: int) -> Shaped[Array, "..."]:
    """Zeros at the end of a dim, up to the next multiple."""
    return jnp.pad(x, [(0, -size % multiple if dim == axis else 0) for dim, size in enumerate(x.shape)])
