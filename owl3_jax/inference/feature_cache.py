"""Features of images seen before, by content: a repeated image is not encoded again."""

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from owl3_jax.batch import AnyArray
from owl3_jax.config import ConfigError
from owl3_jax.host.array_cache import ArrayCache


def key_of(pixels: Shaped[np.ndarray, "height width 3"]) -> bytes:
    """A hash of an image's pixels, their shape and their dtype."""
    digest = hashlib.blake2b(f"{pixels.dtype.str} {pixels.shape}".encode(), digest_size=32)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class FeatureCache:
    """Arrays by key, of at most `max_bytes` together; the least recently used one is dropped first, or moves to the disk."""

    def __init__(self, max_bytes: int, folder: Path | None = None) -> None:
        """`max_bytes` 0 keeps nothing. Raises ConfigError when it is negative.

        Args:
            max_bytes: of the arrays in memory.
            folder: an existing folder for arrays that are dropped from memory, each in a file; None: they are forgotten.
        """
        if max_bytes < 0:
            raise ConfigError(f"the feature cache's max_bytes must be at least 0 (off), got {max_bytes}")
        self.hits = 0
        self.misses = 0
        self._arrays: ArrayCache[bytes] = ArrayCache(max_bytes, self._store)
        self._folder = folder
        self._stored: dict[bytes, tuple[np.dtype[np.generic], tuple[int, ...]]] = {}  # dtypes and shapes of those on the disk

    def __len__(self) -> int:
        """The number of arrays in memory."""
        return len(self._arrays)

    @property
    def max_bytes(self) -> int:
        """Of the arrays in memory; 0: nothing is kept."""
        return self._arrays.max_bytes

    @property
    def nbytes(self) -> int:
        """Of the arrays that are in memory now."""
        return self._arrays.nbytes

    def get(self, key: bytes) -> AnyArray | None:
        """The array of `key`, or None; counted in `hits` or `misses`."""
        array = self._arrays.get(key)
        if array is None and key in self._stored:
            array = self._load(key)
            self.put(key, array)
        if array is None:
            self.misses += 1
            return None
        self.hits += 1
        return array

    def put(self, key: bytes, array: AnyArray) -> None:
        """Keeps an array, replacing the one of the same key; one that is larger than the whole cache is not kept."""
        self._arrays.put(key, array)

    def clear(self) -> None:
        """Forgets all arrays; `hits` and `misses` stay."""
        self._arrays.clear()
        self._stored.clear()

    def _store(self, key: bytes, dropped: AnyArray) -> None:
        if self._folder is not None and key not in self._stored:
            array = np.asarray(dropped)
            (self._folder / key.hex()).write_bytes(array.tobytes())
            self._stored[key] = array.dtype, array.shape

    def _load(self, key: bytes) -> AnyArray:
        assert self._folder is not None
        dtype, shape = self._stored[key]
        return np.fromfile(self._folder / key.hex(), dtype).reshape(shape)
