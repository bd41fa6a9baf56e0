"""mPLUG-Owl3 in JAX and Flax.

import owl3_jax

owl = owl3_jax.from_pretrained("mPLUG-Owl3-1B-241014")
owl.generate("What is this?", images=["photo.jpg"])
"""

import importlib
from typing import TYPE_CHECKING

# Where each public name is defined. Its module is imported when the name is asked for, so that `import owl3_jax` stays light.
_DEFINED_IN = {
    "Owl3Checkpoint": "owl3_jax.pretrained",
    "Processor": "owl3_jax.processing.processor",
    "Sampling": "owl3_jax.inference.sampling",
    "from_pretrained": "owl3_jax.pretrained",
}

if TYPE_CHECKING:  # type checkers know the names by these imports, and no others
    from owl3_jax.inference.sampling import Sampling as Sampling
    from owl3_jax.pretrained import Owl3Checkpoint as Owl3Checkpoint
    from owl3_jax.pretrained import from_pretrained as from_pretrained
    from owl3_jax.processing.processor import Processor as Processor
else:

    def __getattr__(name: str) -> object:
        """Imports a public name; Python calls this for a name that the module does not have yet."""
        if name not in _DEFINED_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_DEFINED_IN[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_DEFINED_IN})
