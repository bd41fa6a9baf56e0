"""Allocating, growing and appending to the two caches of a prompt: text per layer, images per hyper layer."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from owl3_jax.config import ComputeConfig, ModelConfig
from owl3_jax.models.hyper import ImageCache, image_token_slots
from owl3_jax.models.qwen2 import Images, TextCache
from owl3_jax.nn.quantized import vector_bytes
from owl3_jax.nn.stacks import Stack, as_one_stack, split_like, zero_stack
from owl3_jax.sharding import constrain

_TEXT_AXES = ("layers", "batch", "act_kv_heads", "text_slot", "head_dim")
_IMAGE_AXES = ("hyper_layers", "batch", "act_kv_heads", "image", "image_token", "head_dim")


def text_bytes(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values of `rows` x `slots` text positions in all layers."""
    per_slot = config.num_hidden_layers * 2 * config.num_key_value_heads
    return rows * slots * per_slot * vector_bytes(config.head_dim, compute)


def image_bytes(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> int:
    """Bytes of keys and values of `rows` x `slots` images in all hyper layers."""
    per_token = len(config.hyper_layers) * 2 * config.num_key_value_heads
    return rows * slots * image_token_slots(config) * per_token * vector_bytes(config.head_dim, compute)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_text(config: ModelConfig, compute: ComputeConfig, rows: int, slots: int) -> TextCache:
    """A text cache of B = `rows` rows with room for C = `slots` positions, to be read as the past of further text."""
    shape = (config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim)
    zeros = lambda: zero_stack(shape, compute)  # separate buffers, so that each can be donated
    ids = lambda: jnp.zeros((rows, slots), jnp.int32)
    return constrain_text(TextCache(zeros(), zeros(), ids(), ids(), jnp.zeros((), jnp.int32)))


@functools.partial(jax.jit, donate_argnums=0)
def append_text(past: TextCache, new: TextCache) -> TextCache:
    """`past` with the slots of `new` after its own. Both have the same rows, and `past` has room for the slots."""
    write = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, past.length, axis=3)
    pairs = ((past.keys, new.keys), (past.values, new.values))
    keys, values = (jax.tree.map(write, old, split_like(as_one_stack(x), old)) for old, x in pairs)
    longer = past.with_ids(new.positions, new.segment_ids)
    return constrain_text(longer._replace(keys=keys, values=values, length=past.length + new.length))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def empty_images(config: ModelConfig, compute: ComputeConfig, rows: int, blocks: tuple[int, ...]) -> Images:
    """An empty image cache of B = `rows` rows, with room for `blocks` images in each of its blocks."""
    K, L, D = config.num_key_value_heads, image_token_slots(config), config.head_dim
    zeros = lambda images: zero_stack((len(config.hyper_layers), rows, K, images, L, D), compute)
    ids = lambda: jnp.zeros((rows, sum(blocks)), jnp.int32)
    # Keys and values are separate buffers, so that each can be donated.
    return Images(tuple(constrain_block(ImageCache(zeros(images), zeros(images))) for images in blocks), ids(), ids())


@functools.partial(jax.jit, static_argnums=1)
def grow_text(cache: TextCache, slots: int) -> TextCache:
    """The same cache with room for C = `slots` positions."""
    keys, values = jax.tree.map(lambda x: _widen(x, 3, slots), (cache.keys, cache.values))
    positions, segment_ids = (_widen(x, 1, slots) for x in (cache.positions, cache.segment_ids))
    return constrain_text(TextCache(keys, values, positions, segment_ids, cache.length))


@functools.partial(jax.jit, static_argnums=1)
def grow_images(images: Images, blocks: tuple[int, ...]) -> Images:
    """The same images with room for `blocks` images in each block. The last block may become larger, and more blocks follow."""
    empty = jax.tree.map(lambda x: x[:, :, :, :0], images.blocks[0])
    old = (*images.blocks, *[empty] * (len(blocks) - len(images.blocks)))
    widen = lambda block, slots: constrain_block(jax.tree.map(lambda x: _widen(x, 3, slots), block))
    grown = tuple(block if block.images == slots else widen(block, slots) for block, slots in zip(old, blocks, strict=True))
    return Images(grown, *(_widen(x, 1, sum(blocks)) for x in (images.positions, images.segment_ids)))


def constrain_text(cache: TextCache) -> TextCache:
    """Splits the cache over the mesh by the rules."""
    keys, values = (_constrain(x, _TEXT_AXES) for x in (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values)


def constrain_block(block: ImageCache) -> ImageCache:
    """Splits images over the mesh by the rules."""
    return ImageCache(*(_constrain(x, _IMAGE_AXES) for x in block))


def _constrain(cache: Stack, axes: tuple[str, ...]) -> Stack:
    split: Stack = jax.tree.map(lambda x: constrain(x, axes[: x.ndim]), cache)  # scales lack the last dim
    return split


def _widen(x: Shaped[Array, "..."], axis: int, size: int) -> Shaped[Array, "..."]:
    return jnp.pad(x, [(0, size - length if i == axis else 0) for i, length in enumerate(x.shape)])
