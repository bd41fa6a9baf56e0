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
