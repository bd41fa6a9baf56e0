"""The tree of a model's parameters."""

from typing import Any

# Nested dicts whose leaves are arrays, their shapes, or what is said of them (logical names, shardings).
# Any: with a recursive type, every `params["language_model"]["norm"]` would be a union; flax types its trees so too.
Params = dict[str, Any]
