"""Which training steps are bad: their loss or gradients are not finite, or a spike."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from owl3_jax.batch import AnyArray

_FEWEST = 20  # good steps before anything can be a spike
_WINDOW = 100  # good steps that the running means look back on, about


class Guard(NamedTuple):
    """What earlier steps were like. Part of the state, so that a run that resumes judges as one that was never stopped."""

    loss: AnyArray  # float32 scalar: running mean over good steps
    grad_norm: AnyArray  # float32 scalar: the same
    good: AnyArray  # int32 scalar: their number
    bad: AnyArray  # int32 scalar: number of bad ones

    @classmethod
    def fresh(cls) -> "Guard":
        """Before the first step."""
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return cls(zero, zero, none, none)

    def judge(
        self, loss: Float[Array, ""], grad_norm: Float[Array, ""], spike: float | None
    ) -> tuple[Bool[Array, ""], "Guard"]:
        """Whether a step is bad, and the guard of the next one. `spike` is `train.spike`."""
        is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        if spike is not None:
            is_high = (loss > spike * self.loss) | (grad_norm > spike * self.grad_norm)
            is_bad |= is_high & (self.good >= _FEWEST)
        share = 1 / jnp.minimum(self.good + 1, _WINDOW)
        moved = lambda mean, x: jnp.where(is_bad, mean, mean + share * (x - mean)).astype(jnp.float32)
        counted = self.good + ~is_bad, self.bad + is_bad
        return is_bad, Guard(moved(self.loss, loss), moved(self.grad_norm, grad_norm), *counted)
