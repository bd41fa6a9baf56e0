"""The whole model."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from owl3_jax.config import ModelConfig
from owl3_jax.convert.table import EMBEDDING, sort_names

from .decoder import Cache, Decoder
from .layers import Weights
from .vision import project, siglip


class TorchOwl3:
    """mPLUG-Owl3 without gradients.

    Args:
        config: the architecture.
        tensors: by official name, of one dtype; those that the model never reads may be there. What is not contiguous, as
            much of `owl3_jax.convert.table.params_to_official`, is copied.
        repeat_keys: whether keys and values are copied for each of their query heads, as the official code does.

    Raises ValueError when a tensor is missing.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], *, repeat_keys: bool = True) -> None:
        if missing := sort_names(tensors, config).missing:
            raise ValueError(
                f"{len(missing)} tensors of this config are missing, such as {missing[0]}; is it the config of these weights?"
            )
        self._config = config
        self._weights = Weights({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._decoder = Decoder(self._weights, config, repeat_keys=repeat_keys)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor, batch_size: int | None = None) -> Tensor:
        """Image features [I, L, E] of pixels [I, 3, S, S] in [-1, 1], `batch_size` images (default: all) at a time."""
        config, I = self._config, len(pixels)
        features = torch.empty(I, config.vision.tokens_per_image, config.hidden_size, dtype=self._weights[EMBEDDING].dtype)
        size = batch_size or max(I, 1)
        for start in range(0, I, size):
            x = siglip(self._weights, config.vision, pixels[start : start + size].to(features.dtype))
            features[start : start + size] = project(self._weights, config.form, x)
        return features

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, image_starts: Tensor, features: Tensor) -> tuple[Tensor, Cache]:
        """Reads a prompt.

        Args:
            input_ids: [1, T] int64.
            image_starts: [I] int64, positions of the first tokens of the images' placeholders.
            features: [I, L, E] from `encode_images`.

        Returns the logits [1, V] that follow the prompt, and the cache to decode with.
        Raises ValueError when there are more features than starts or fewer.
        """
        if len(image_starts) != len(features):
            raise ValueError(f"image_starts places {len(image_starts)} images, but features holds {len(features)}")
        cache = Cache(features, image_starts)
        return self._decoder.logits(input_ids, cache), cache

    @torch.inference_mode()
    def decode(self, token: Tensor, cache: Cache) -> Tensor:
        """Logits [1, V] that follow one more token [1, 1] int64; the cache then holds it too."""
        return self._decoder.logits(token, cache)

    def greedy(
        self, input_ids: Tensor, image_starts: Tensor, features: Tensor, max_new_tokens: int, stop_ids: Collection[int] = ()
    ) -> list[int]:
        """The most likely answer, up to and with the first stop id; the other arguments are those of `prefill`."""
        logits, cache = self.prefill(input_ids, image_starts, features)
        token = logits.argmax(dim=-1, keepdim=True)
        answer = [int(token)]
        while len(answer) < max_new_tokens and answer[-1] not in stop_ids:
            token = self.decode(token, cache).argmax(dim=-1, keepdim=True)
            answer.append(int(token))
        return answer
