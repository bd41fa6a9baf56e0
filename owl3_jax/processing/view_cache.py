"""Decoded frames that several prompts ask about, in the size in which the model sees them."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import UInt8


class ViewCache:
    """Views by key, of at most `max_bytes` together; the least recently used one is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._views: OrderedDict[Hashable, UInt8[np.ndarray, "S S 3"]] = OrderedDict()

    def get_all(self, keys: Sequence[Hashable]) -> list[UInt8[np.ndarray, "S S 3"]] | None:
        """The views of all keys, or None where one is missing."""
        if any(key not in self._views for key in keys):
            return None
        for key in keys:
            self._views.move_to_end(key)
        return [self._views[key] for key in keys]

    def put(self, key: Hashable, view: UInt8[np.ndarray, "S S 3"]) -> None:
        """Keeps a view."""
        if key in self._views or view.nbytes > self.max_bytes:
            return
        self._views[key] = view
        self.bytes += view.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._views.popitem(last=False)[1].nbytes
