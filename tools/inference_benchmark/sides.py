"""Our side and PyTorch's, with the same four calls, encode, read, decode and reset, on the same random weights and inputs."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from owl3_jax.config import ComputeConfig, DType, ModelConfig
from owl3_jax.convert.table import params_to_official
from owl3_jax.inference import buckets, programs
from owl3_jax.inference.choose import SamplingOps, SamplingRows
from owl3_jax.inference.context import Context
from owl3_jax.inference.runtime import Params, Runtime
from owl3_jax.inference.sampling import Sampling
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.models.qwen2 import unstack_layers
from owl3_jax.models.siglip import normalize_pixels

FEATURES = 8  # images that have features of their own; prompts with more see them again and again
_TOKENS_PER_IMAGE, _OTHER_TOKENS = 5, 40  # of a prompt: placeholders as the released tokenizers write them, and a question


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both sides run."""

    config: ModelConfig
    dtype: DType
    vision_batch_size: int
    new_tokens: int = 64  # room for decoding after a prefill
    seed: int = 0

    def prompt(self, images: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [T] and starts [I] of a prompt."""
        ids = np.random.default_rng(self.seed).integers(0, self.config.vocab_size, _OTHER_TOKENS + _TOKENS_PER_IMAGE * images)
        return ids.astype(np.int32), (8 + _TOKENS_PER_IMAGE * np.arange(images)).astype(np.int32)

    def features(self) -> np.ndarray:
        """Image features [FEATURES, L, E], float32."""
        shape = (FEATURES, self.config.vision.tokens_per_image, self.config.hidden_size)
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)

    def pixels(self) -> np.ndarray:
        """uint8 [J, S, S, 3], J = vision_batch_size."""
        side = self.config.vision.image_size
        return np.random.default_rng(self.seed).integers(0, 256, (self.vision_batch_size, side, side, 3), np.uint8)


class Ours:
    """This project, through the programs that the engine calls."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self.images_per_batch = settings, settings.vision_batch_size
        on_cpu = jax.default_backend() == "cpu"
        compute = ComputeConfig(dtype=settings.dtype, param_dtype=settings.dtype, scan_layers=not on_cpu)
        self._stacked = _random_params(settings)
        params = unstack_layers(self._stacked) if on_cpu else self._stacked
        self.runtime = Runtime(settings.config, compute, jax.tree.map(jnp.asarray, params), None, settings.vision_batch_size)
        self._features = jnp.asarray(settings.features(), settings.dtype)
        self._pixels = jnp.asarray(settings.pixels())

    def official_tensors(self) -> dict[str, np.ndarray]:
        """The weights by official name. Only the first call returns them, since it frees the stacked ones."""
        stacked, self._stacked = self._stacked, {}
        return params_to_official(stacked, self._settings.config)

    def with_own_prompt(self) -> Self:
        """A copy with a prompt of its own, on the same weights."""
        return copy.copy(self)

    def tokens(self, images: int) -> int:
        """Tokens of the prompt with this many images."""
        return len(self._settings.prompt(images)[0])

    def encode(self) -> None:
        """One batch through the vision tower."""
        jax.block_until_ready(self.runtime.run_model(programs.encode, self._pixels))

    def read(self, images: int, rows: int = 1) -> None:
        """Prefill: from features to the first token."""
        ids, starts = self._settings.prompt(images)
        new_tokens = self._settings.new_tokens
        room = buckets.prefill_slots(len(ids))
        self._context = context = Context.empty(self.runtime, rows, images=images, tokens=room, new_tokens=new_tokens)
        for row in range(rows):
            context.add_features(row, starts.tolist(), self._chunks(images))
        context.add_text([ids.tolist()] * rows)
        samplings = [Sampling(max_new_tokens=new_tokens)] * rows
        self._ops = SamplingOps.of(samplings)
        limits = jnp.full(rows, new_tokens, jnp.int32)
        never = jnp.zeros(0, jnp.int32)  # no stop id: every row continues
        self._answers = programs.Settings(SamplingRows.of(samplings), limits, never)
        self._state = context.begin(self._answers, self._ops, capacity=new_tokens)
        jax.block_until_ready(self._state.token)

    def decode(self, tokens: int) -> None:
        """Further tokens of every row, in one call."""
        limit = int(self._state.written) + tokens
        self._state = self._context.decode(self._state, self._answers, self._ops, limit)
        jax.block_until_ready(self._state.token)

    def newest_tokens(self) -> np.ndarray:
        """[B], of every row."""
        return np.asarray(self._state.token)

    def reset(self) -> None:
        """Frees the caches."""
        del self._context, self._state

    def _chunks(self, images: int) -> Iterator[jax.Array]:
        """The features of a prompt as a stream, so that those of 1024 images are never in memory together."""
        for start in range(0, images, FEATURES):
            yield self._features[: min(FEATURES, images - start)]


class Torch:
    """The official algorithm in plain PyTorch."""

    def __init__(self, settings: Settings, model: Any) -> None:
        """Takes a `TorchOwl3` with the weights of `torch_tensors`."""
        self._settings, self._model, self.images_per_batch = settings, model, settings.vision_batch_size
        pixels = np.array(normalize_pixels(jnp.asarray(settings.pixels()))).transpose(0, 3, 1, 2)
        inputs = torch_tensors({"features": settings.features(), "pixels": pixels}, settings.dtype)
        self._features, self._pixels = inputs["features"], inputs["pixels"]

    def encode(self) -> None:
        """One batch through the vision tower."""
        self._model.encode_images(self._pixels)

    def read(self, images: int) -> None:
        """Prefill: from features to the first token."""
        prompt = dict(zip(("ids", "starts"), self._settings.prompt(images), strict=True))
        ids, starts = torch_tensors(prompt, "int64").values()
        features = self._features[np.arange(images) % FEATURES]
        logits, self._cache = self._model.prefill(ids[None], starts, features)
        self._token = logits.argmax(dim=-1, keepdim=True)

    def decode(self, tokens: int) -> None:
        """Further tokens, one call each."""
        for _ in range(tokens):
            self._token = self._model.decode(self._token, self._cache).argmax(dim=-1, keepdim=True)

    def newest_tokens(self) -> np.ndarray:
        """[1]"""
        return self._token[0].numpy()

    def reset(self) -> None:
        """Frees the caches."""
        del self._cache


def torch_tensors(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """PyTorch tensors of a dtype, with the same names; torch is imported only here."""
    import torch

    as_known = {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in arrays.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(x)).to(getattr(torch, dtype)) for name, x in as_known.items()}


def _random_params(settings: Settings) -> Params:
    """Numpy arrays of standard deviation 0.02, layers stacked; norms are one."""
    random, dtype = np.random.default_rng(settings.seed), np.dtype(settings.dtype)
    abstract = nn.unbox(abstract_params(settings.config, ComputeConfig(param_dtype=settings.dtype)))

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, dtype)
        return (random.standard_normal(leaf.shape, np.float32) * 0.02).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)
