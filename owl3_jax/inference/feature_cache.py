"""Features of images seen before, by content: a repeated image is not encoded again."""

import hashlib
from collections import OrderedDict

import numpy as np
from jaxtyping import Shaped

from owl3_jax.batch import AnyArray
from owl3_jax.config import ConfigError


def key_of(pixels: Shaped[np.ndarray, "height width 3"]) -> bytes:
    """A hash of an image's pixels, their shape and their dtype."""
    digest = hashlib.blake2b(f"{pixels.dtype.str} {pixels.shape}".encode(), digest_size=32)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class FeatureCache:
    """Arrays by key, of at most `max_bytes` together; the least recently used one is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing. Raises ConfigError when it is negative."""
        if max_bytes < 0:
            raise ConfigError(f"the feature cache's max_bytes must be at least 0 (off), got {max_bytes}")
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self.max_bytes = max_bytes
        self._arrays: OrderedDict[bytes, AnyArray] = OrderedDict()  # most recently used last

    def __len__(self) -> int:
        """The number of arrays that are kept."""
        return len(self._arrays)

    def get(self, key: bytes) -> AnyArray | None:
        """The array of `key`, or None; counted in `hits` or `misses`."""
        array = self._arrays.get(key)
        if array is None:
            self.misses += 1
            return None
        self.hits += 1
        self._arrays.move_to_end(key)
        return array

    def put(self, key: bytes, array: AnyArray) -> None:
        """Keeps an array, replacing the one of the same key; one that is larger than the whole cache is not kept."""
        self._drop(key)
        if array.nbytes > self.max_bytes:
            return
        self._arrays[key] = array
        self.bytes += array.nbytes
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._arrays)))

    def clear(self) -> None:
        """Forgets all arrays; `hits` and `misses` stay."""
        self._arrays.clear()
        self.bytes = 0

    def _drop(self, key: bytes) -> None:
        if key in self._arrays:
            self.bytes -= self._arrays.pop(key).nbytes
