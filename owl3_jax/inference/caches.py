"""Allocating the two caches that a prompt leaves behind: text per layer, images per hyper layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.hyper import ImageCache
from owl3_jax.models.layers import constrain
from owl3_jax.models.quantized import vector_bytes, zero_vectors
from owl3_jax.models.qwen2 import Images, TextCache

_TEXT_AXES = ("layers", "batch", "act_kv_heads", "text_slot", "head_dim")
_IMAGE_AXES = ("hyper_layers", "batch", "act_kv_heads", "image", "image_token", "head_dim")


def text_bytes(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values of `rows` x `slots` text positions in all layers."""
    per_slot = config.num_hidden_layers * 2 * config.num_key_value_heads
    return rows * slots * per_slot * vector_bytes(config.head_dim, compute)


def image_bytes(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values of `rows` x `slots` images in all hyper layers."""
    per_token = len(config.hyper_layers) * 2 * config.num_key_value_heads
    return rows * slots * config.vision.tokens_per_image * per_token * vector_bytes(config.head_dim, compute)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_text(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> TextCache:
    """A text cache of B = `rows` rows with room for C = `slots` positions."""
    return constrain_text(TextCache.empty(config, compute, rows, slots))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_images(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> Images:
    """An image cache of B = `rows` rows with room for I = `slots` images; all of them are padding."""
    shape = (len(config.hyper_layers), rows, config.num_key_value_heads, slots, config.vision.tokens_per_image, config.head_dim)
    zeros = lambda: zero_vectors(shape, compute)  # buffers of their own, so that each can be donated
    ids = lambda: jnp.zeros((rows, slots), jnp.int32)
    return constrain_images(Images(ImageCache(zeros(), zeros()), ids(), ids()))


@functools.partial(jax.jit, static_argnums=1)
def grow_text(cache: TextCache, slots: int) -> TextCache:
    """The same cache with room for C = `slots` positions."""
    keys, values = jax.tree.map(lambda x: _widen(x, 3, slots), (cache.keys, cache.values))
    positions, segment_ids = (_widen(x, 1, slots) for x in (cache.positions, cache.segment_ids))
    return constrain_text(TextCache(keys, values, positions, segment_ids, cache.length))


@functools.partial(jax.jit, static_argnums=1)
def grow_images(images: Images, slots: int) -> Images:
    """The same images with room for I = `slots` of them."""
    cache = jax.tree.map(lambda x: _widen(x, 3, slots), images.cache)
    return constrain_images(Images(cache, _widen(images.positions, 1, slots), _widen(images.segment_ids, 1, slots)))


def constrain_text(cache: TextCache) -> TextCache:
    """Splits the cache over the mesh by the rules."""
    keys, values = (_constrain(x, _TEXT_AXES) for x in (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values)


def constrain_images(images: Images) -> Images:
    """Splits the cache over the mesh by the rules."""
    return images._replace(cache=_constrain(images.cache, _IMAGE_AXES))


def _constrain(cache: Any, axes: tuple[str, ...]) -> Any:
    return jax.tree.map(lambda x: constrain(x, axes[: x.ndim]), cache)  # scales lack the last dim


def _widen(x: jax.Array, axis: int, size: int) -> jax.Array:
    return jnp.pad(x, [(0, size - length if i == axis else 0) for i, length in enumerate(x.shape)])
