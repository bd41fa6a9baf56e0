"""Arrays by key, in a limited number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class ArrayCache(Generic[Key]):
    """Arrays of at most `max_bytes` together; the least recently used one is dropped first. Not for several threads."""

    # Any: an array, of numpy or jax
    def __init__(self, max_bytes: int, on_drop: Callable[[Key, Any], None] | None = None) -> None:
        """`on_drop` gets each array that makes room for others."""
        self.max_bytes, self.nbytes = max_bytes, 0
        self._on_drop = on_drop
        self._arrays: OrderedDict[Key, Any] = OrderedDict()  # the most recently used last. Any: as above

    def __len__(self) -> int:
        """The number of arrays that are kept."""
        return len(self._arrays)

    def get(self, key: Key) -> Any:  # Any: what was put
        """The array of `key`, or None."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: Key, array: Any) -> None:  # Any: an array with `nbytes`
        """Keeps an array, replacing the one of the same key; one that is larger than the whole cache is not kept."""
        if key in self._arrays:
            self.nbytes -= self._arrays.pop(key).nbytes
        if array.nbytes > self.max_bytes:
            return
        self._arrays[key] = array
        self.nbytes += array.nbytes
        while self.nbytes > self.max_bytes:
            oldest, dropped = self._arrays.popitem(last=False)
            self.nbytes -= dropped.nbytes
            if self._on_drop:
                self._on_drop(oldest, dropped)

    def clear(self) -> None:
        """Forgets all arrays."""
        self._arrays.clear()
        self.nbytes = 0
