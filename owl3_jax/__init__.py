"""mPLUG-Owl3 in JAX and Flax.

import owl3_jax

owl = owl3_jax.from_pretrained("mPLUG-Owl3-1B-241014")
owl.generate("What is this?", images=["photo.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl3_jax.pretrained import Owl3Checkpoint as Owl3Checkpoint
    from owl3_jax.pretrained import from_pretrained as from_pretrained

_LAZY = ("Owl3Checkpoint", "from_pretrained")


def __getattr__(name: str) -> Any:
    """Imported when asked for, so that `import owl3_jax.config` stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'owl3_jax' has no attribute {name!r}")
    from owl3_jax import pretrained

    return getattr(pretrained, name)
