"""Meaningless records that fill a batch, for measuring and testing at the real shapes without any data.

Every record is one conversation with as many images and tokens as a row has room for, with the tokenizer of the digits. It
depends only on its index and is made when it is read.
"""

import io
import json

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from owl3_jax.config import ConfigError, DataConfig
from owl3_jax.data.readers.stored import StoredRecord
from owl3_jax.processing.chat import IMAGE

_LENGTH = 1_000_000
_MARKERS = 15  # tokens of a chat with one question and one answer, both empty
_SIDE = 8  # pixels of a stored image: decoding and enlarging it costs little


class SyntheticRecords:
    """One million records for rows of `config`: random digits as text, half of it the question, and random images."""

    def __init__(self, config: DataConfig) -> None:
        self._images = config.images_per_row
        self._text = config.tokens_per_row - _MARKERS - config.images_per_row
        if self._text < 2:
            raise ConfigError(
                f"data.tokens_per_row {config.tokens_per_row} leaves no room for text; the data set 'synthetic' needs at least "
                f"{_MARKERS + 2} tokens and one more for each of the {config.images_per_row} images of a row"
            )

    def __len__(self) -> int:
        return _LENGTH

    def __getitem__(self, index: int) -> StoredRecord:
        rng = np.random.default_rng(index)
        digits = "".join(map(str, rng.integers(0, 10, self._text).tolist()))
        half = self._text // 2
        messages = [
            {"role": "user", "content": IMAGE * self._images + digits[:half]},
            {"role": "assistant", "content": digits[half:]},
        ]
        images = [_encoded(pixels) for pixels in rng.integers(0, 256, (self._images, _SIDE, _SIDE, 3), np.uint8)]
        return {"messages": json.dumps(messages), "images": images, "metadata": "{}"}


def _encoded(pixels: UInt8[np.ndarray, "S S 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
