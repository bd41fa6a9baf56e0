"""Small models and batches for tests. Sizes are distinct primes where nothing forbids it, so that swapped axes fail."""

import dataclasses
import functools
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from owl3_jax.batch import Batch
from owl3_jax.config import ComputeConfig, Form, ModelConfig, VisionConfig
from owl3_jax.models.owl3 import abstract_params

FORMS: tuple[Form, ...] = ("gated", "static", "joint")
_DEVIATIONS = {"kernel": 0.25, "embed_tokens": 0.5, "lm_head": 0.5, "position_embedding": 0.35}  # others: 0.2
COMPUTE = ComputeConfig(dtype="float32", images_per_chunk=2)


def model_config(form: Form = "gated", **changes: object) -> ModelConfig:
    """V=31, E=42 (H=3, K=1, D=14), F=37, N=5; L=9 of 11x11 pixels, Ev=10 (Hv=2), Fv=13."""
    vision = VisionConfig(
        hidden_size=10, intermediate_size=13, num_hidden_layers=3, num_attention_heads=2, image_size=11, patch_size=3
    )
    config = ModelConfig(
        form=form,
        vocab_size=31,
        hidden_size=42,
        intermediate_size=37,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=1,
        hyper_layers=(2, 5),
        rope_theta=1e4,
        max_position_embeddings=97,
        initializer_range=0.5,
        vision=vision,
    )
    return dataclasses.replace(config, **changes)


def single(tokens: int, images: list[int], *, side: int = 11, vocab: int = 31, seed: int = 0) -> Batch:
    """One unpadded row of random tokens, with random images whose placeholders start at `images`."""
    rng = np.random.default_rng(seed)
    return Batch(
        tokens=rng.integers(0, vocab, (1, tokens), np.int32),
        positions=np.arange(tokens, dtype=np.int32)[None],
        segment_ids=np.ones((1, tokens), np.int32),
        pixels=rng.integers(0, 256, (1, len(images), side, side, 3), np.uint8),
        image_positions=np.array(images, np.int32).reshape(1, -1),
        image_segment_ids=np.ones((1, len(images)), np.int32),
        loss_weights=rng.integers(0, 2, (1, tokens)).astype(np.float32),
    )


def pad(batch: Batch, tokens: int, images: int) -> Batch:
    """Padding on the right up to `tokens` text positions and `images` images, with garbage where it must not matter."""
    t, i = tokens - batch.tokens.shape[1], images - batch.image_positions.shape[1]
    widen = lambda x, n, value: np.pad(x, [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
    return Batch(
        tokens=widen(batch.tokens, t, 7),
        positions=widen(batch.positions, t, 3),
        segment_ids=widen(batch.segment_ids, t, 0),
        pixels=widen(batch.pixels, i, 99),
        image_positions=widen(batch.image_positions, i, 1),
        image_segment_ids=widen(batch.image_segment_ids, i, 0),
        loss_weights=widen(batch.loss_weights, t, 0.0),
    )


def stack(batches: list[Batch]) -> Batch:
    """Rows of equal shape below each other."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def pack(batches: list[Batch]) -> Batch:
    """Single rows as the segments of one row."""
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *batches)
    number = lambda name: np.concatenate([getattr(b, name) * (n + 1) for n, b in enumerate(batches)], axis=1)
    return joined._replace(segment_ids=number("segment_ids"), image_segment_ids=number("image_segment_ids"))


@functools.cache
def init(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters in which every gate, norm and bias differs from its neutral start.

    numpy draws them in no time, where compiling the model's own initialisation takes 17 s.
    """
    flat = flatten_dict(nn.unbox(abstract_params(config, COMPUTE)), sep="/")

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        noise = np.random.default_rng([seed, zlib.crc32(path.encode())]).normal(size=shape)
        *_, name = path.split("/")
        mean, deviation = (1.0, 0.2) if name == "scale" else (0.0, _DEVIATIONS.get(name, 0.2))
        return jnp.asarray(mean + deviation * noise, jnp.float32)

    return unflatten_dict({path: draw(path, x.shape) for path, x in flat.items()}, sep="/")
