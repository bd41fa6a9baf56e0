"""What the rungs of the parity ladder share: a PyTorch model and ours with the same weights, through our converter."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.torch import save_file

from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig, Form, ModelConfig
from owl3_jax.convert.load import load_params
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.config_json import config_json_of
from tests.parity.torch_owl3 import TorchOwl3
from tests.tiny import model_config

torch.set_num_threads(1)  # on matrices this small, threads only wait for each other

FLOAT32 = ComputeConfig(dtype="float32", images_per_chunk=2)
FORMS: tuple[Form, ...] = ("gated", "static", "joint")


class Pair(NamedTuple):
    """The same model twice."""

    config: ModelConfig
    reference: TorchOwl3  # float64
    params: dict[str, Any]  # float32


@functools.cache
def pair(form: Form = "gated", *, image_size: int = 11, patch_size: int = 3, **changes: Any) -> Pair:
    """A random model of `tests.tiny`'s sizes: PyTorch's state_dict, saved in the official layout and loaded by us."""
    config = model_config(form, **changes)
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=image_size, patch_size=patch_size)
    )
    reference = TorchOwl3(config)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tensors = reference.state_dict()
        if config.tie_word_embeddings:
            del tensors["language_model.lm_head.weight"]
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config_json_of(config)))
        assert load_config(directory) == config
        params = jax.tree.map(jnp.asarray, load_params(directory, config))
    return Pair(config, reference.double(), params)


def row(params: dict[str, Any], index: int) -> dict[str, Any]:
    """One layer of stacked parameters."""
    return jax.tree.map(lambda x: x[index], params)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def to_torch(x: jax.Array | np.ndarray) -> torch.Tensor:
    """float32 becomes float64, integers int64."""
    return torch.from_numpy(np.array(x)).to(torch.float64 if x.dtype == np.float32 else torch.int64)


class Sample(NamedTuple):
    """A prompt with images."""

    tokens: np.ndarray  # [T] int32
    pixels: np.ndarray  # [I, S, S, 3] float32
    starts: np.ndarray  # [I] int32

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Arguments of TorchOwl3."""
        return to_torch(self.tokens), to_torch(self.pixels.transpose(0, 3, 1, 2)), to_torch(self.starts)


def sample(config: ModelConfig, tokens: int, starts: list[int], seed: int = 0) -> Sample:
    rng, side = np.random.default_rng(seed), config.vision.image_size
    pixels = rng.uniform(-1, 1, (len(starts), side, side, 3)).astype(np.float32)
    return Sample(rng.integers(0, config.vocab_size, tokens, np.int32), pixels, np.array(starts, np.int32))


def batch_of(samples: list[Sample], tokens: int, images: int) -> Batch:
    """One sample a row, padded on the right; every token after the first bears loss."""
    rows, side = len(samples), samples[0].pixels.shape[1]
    ids = np.zeros((3, rows, tokens), np.int32)
    image_ids = np.zeros((2, rows, images), np.int32)
    pixels = np.zeros((rows, images, side, side, 3), np.float32)
    for i, s in enumerate(samples):
        T, I = len(s.tokens), len(s.starts)
        ids[:, i, :T] = s.tokens, np.arange(T), np.ones(T)
        image_ids[:, i, :I] = s.starts, np.ones(I)
        pixels[i, :I] = s.pixels
    weights = ((ids[2] != 0) & (ids[1] > 0)).astype(np.float32)
    return jax.tree.map(jnp.asarray, Batch(*ids, pixels, *image_ids, weights))


def check(ours: Any, reference: torch.Tensor, atol: float) -> None:
    """Compares with the reference, whose values must be large enough for `atol` to mean something."""
    expected = reference.detach().numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=0, atol=atol)
