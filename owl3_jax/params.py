"""The tree of a model's parameters."""

import math
from typing import Any

import jax

# Nested dicts whose leaves are arrays, their shapes, or what is said of them (logical names, shardings).
# Any: with a recursive type, every `params["language_model"]["norm"]` would be a union; flax types its trees so too.
Params = dict[str, Any]


def count_params(tree: object) -> int:
    """The numbers in all arrays of a tree, which may be their shapes alone."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
