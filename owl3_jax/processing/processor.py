"""From messages and images to what the model reads: one `Sample` per conversation."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from owl3_jax.processing.chat import IMAGE, Message, Style, chat_chunks, count_placeholders
from owl3_jax.processing.images import squash, to_rgb
from owl3_jax.processing.tokenizer import ChatTokenizer


class Sample(NamedTuple):
    """One conversation with its images."""

    input_ids: np.ndarray  # [T] int32
    image_starts: np.ndarray  # [I] int32, index of the first token of each placeholder
    pixel_values: np.ndarray  # [I, S, S, 3] uint8
    labels: np.ndarray  # [T] bool, True where the token bears loss


@dataclasses.dataclass(frozen=True)
class Processor:
    """Makes samples for one tokenizer and one image size. Holds no state and never changes its input."""

    tokenizer: ChatTokenizer
    image_size: int  # S, pixels
    style: Style = "chatml"

    def __call__(self, messages: Sequence[Message], images: Sequence[Image.Image], *, training: bool = False) -> Sample:
        """Processes one conversation.

        Args:
            messages: `{"role", "content"}` each, one `<|image|>` in user text per image.
            images: the images in text order.
            training: True for a sample with its answers, False for a prompt that is to be answered (see `chat_chunks`).

        Raises:
            ValueError: the messages are malformed, or images and placeholders differ in number.
        """
        chunks = chat_chunks(messages, training=training, style=self.style)
        _check_image_count(count_placeholders(messages), len(images))
        text = self.tokenizer.encode(chunks)
        return Sample(text.input_ids, text.image_starts, self._pixel_values(images), text.labels)

    def _pixel_values(self, images: Sequence[Image.Image]) -> np.ndarray:
        shape = (self.image_size, self.image_size, 3)
        pixels = [squash(to_rgb(image), self.image_size) for image in images]
        return np.stack(pixels) if pixels else np.zeros((0, *shape), np.uint8)


def _check_image_count(placeholders: int, images: int) -> None:
    if placeholders != images:
        raise ValueError(f"the messages have {placeholders} {IMAGE} placeholders, but {images} images were given")
