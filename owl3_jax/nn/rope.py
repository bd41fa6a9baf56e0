"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope(x: Float[Array, "*dims D"], positions: Int[Array, "..."], theta: float) -> Float[Array, "*dims D"]:
    """Rotary position embedding, rotate-halves convention, computed in float32.

    `positions` is broadcast against the leading dims of `x`.
    """
    cos, sin = rotation(positions, x.shape[-1] // 2, theta)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotation(
    positions: Int[Array, "*dims"], half: int, theta: float
) -> tuple[Float[Array, "*dims {half}"], Float[Array, "*dims {half}"]]:
    """Cosine and sine of the angle of each position and pair of numbers, of which a vector has `half` its size; float32."""
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)  # [D/2]
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def turns_back(positions: Int[Array, "*dims"], size: int, theta: float) -> Float[Array, "*dims {2*size}"]:
    """What turns vectors of D = `size` back by positions, for `turned_back`: D cosines, then D sines; float32."""
    cos, sin = rotation(positions, size // 2, theta)
    return jnp.concatenate([cos, cos, sin, sin], axis=-1)


def turned_back(x: Float[Array, "*dims D"], turns: Float[Array, "..."]) -> Float[Array, "*dims D"]:
    """Undoes the rotation of `rope` by the positions of `turns_back`; computed in float32."""
    cos, sin = jnp.split(turns, 2, axis=-1)
    return (x.astype(jnp.float32) * cos + quarter_turn(x.astype(jnp.float32)) * sin).astype(x.dtype)


def quarter_turn(x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
    """Each pair of numbers turned back by 90 degrees."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, -first], axis=-1)
