"""The one attention of text over images: all forms of hyper attention call it.

Scores exist for `images_per_chunk` images at a time, forward and backward, so that memory does not grow with
T x (all image tokens). Each chunk is cut straight out of the keys and values of all hyper layers, which are never
copied as a whole; going forward, a chunk that no position sees is not computed. The backward pass is written out: it
keeps the output and the log-sum-exp, and recomputes the scores of each chunk.

Where the mesh spreads images over devices (logical axis `image`), each device attends to its own images and the
parts are merged by their log-sum-exp: no device ever gathers the images of the others.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from owl3_jax.models.attention import MASKED, attend, attention_scores, group, merge
from owl3_jax.models.quantized import Quantized, dequantize

AllImageKeys = Float[Array, "M B K I L D"] | Quantized


def image_attention(
    q: Float[Array, "B H T D"],
    keys: AllImageKeys,
    values: AllImageKeys,
    layer: Int[Array, ""],
    visible: Bool[Array, "B T I"],
    images_per_chunk: int,
) -> tuple[Float[Array, "B H T D"], Float[Array, "B H T"]]:
    """Attention of rotated text queries over rotated image keys (paper, section on hyper attention).

    `layer` chooses among the M hyper layers. Quantized keys and values, which have no gradient, become floats chunk by chunk.
    Returns output (zero where no image is seen) and log-sum-exp, in float32, like `attend`.
    """
    if keys.shape[3] == 0:
        return jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
    axes = _mesh_axes_of_images()
    if not axes:
        return _image_attention(q, keys, values, layer, visible, images_per_chunk)
    devices = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
    keys, values = jax.tree.map(lambda x: _pad(x, 3, devices), (keys, values))
    spread = jax.shard_map(
        functools.partial(_merge_over_devices, images_per_chunk=images_per_chunk, axes=axes),
        in_specs=(
            PartitionSpec(),
            *[PartitionSpec(None, None, None, axes)] * 2,
            PartitionSpec(),
            PartitionSpec(None, None, axes),
        ),
        out_specs=PartitionSpec(),
        axis_names=set(axes),
        check_vma=False,
    )
    return spread(q, keys, values, layer, _pad(visible, 2, devices))


def _mesh_axes_of_images() -> tuple[str, ...]:
    """The mesh axes, larger than one, that the rules in force split images over."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = nn.logical_to_mesh_axes(("image",))
    axes = spec[0] if spec else None
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def _pad(x: Array, axis: int, multiple: int) -> Array:
    return jnp.pad(x, [(0, -size % multiple if i == axis else 0) for i, size in enumerate(x.shape)])


def _merge_over_devices(q, keys, values, layer, visible, *, images_per_chunk, axes):
    out, lse = _image_attention(q, keys, values, layer, visible, images_per_chunk)
    top = jax.lax.pmax(jax.lax.stop_gradient(lse), axes)
    share = jnp.exp(lse - top)
    total = jax.lax.psum(share, axes)
    return jax.lax.psum(out * share[..., None], axes) / total[..., None], top + jnp.log(total)


class _Chunk(NamedTuple):
    keys: Float[Array, "B K J L D"] | Quantized  # of J images
    values: Float[Array, "B K J L D"] | Quantized
    visible: Bool[Array, "B T J"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _image_attention(q, keys, values, layer, visible, images_per_chunk):
    chunks, cut = _chunks(keys, values, layer, visible, images_per_chunk)
    empty = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)

    def step(merged, number):
        chunk = cut(number)
        more = lambda: merge(*merged, *_attend_chunk(q, *chunk))
        return jax.lax.cond(chunk.visible.any(), more, lambda: merged), None

    if chunks == 1:
        return _attend_chunk(q, *cut(0))
    return jax.lax.scan(step, empty, jnp.arange(chunks))[0]


def _forward(q, keys, values, layer, visible, images_per_chunk):
    out, lse = _image_attention(q, keys, values, layer, visible, images_per_chunk)
    return (out, lse), (q, keys, values, layer, visible, out, lse)


def _backward(images_per_chunk, residuals, cotangents):
    q, keys, values, layer, visible, out, lse = residuals
    d_out, d_lse = cotangents
    chunks, cut = _chunks(keys, values, layer, visible, images_per_chunk)
    # The score of key c gets weight_c * (d_out . v_c - d_out . out + d_lse).
    shift = d_lse - jnp.sum(d_out * out, axis=-1)  # [B, H, T]

    def step(d_q, number):
        d_q_part, d_k, d_v = _backward_chunk(q, cut(number), lse, shift, d_out)
        return d_q + d_q_part, (d_k, d_v)

    d_q, d_kv = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), jnp.arange(chunks))
    d_keys, d_values = (
        jnp.zeros_like(x).at[layer].set(_join_chunks(d_x, x.shape[3]).astype(x.dtype))
        for x, d_x in zip((keys, values), d_kv, strict=True)
    )
    return d_q.astype(q.dtype), d_keys, d_values, None, None


_image_attention.defvjp(_forward, _backward)


def _chunks(keys, values, layer, visible, images_per_chunk):
    """The number of chunks, and what cuts chunk `number` out of one hyper layer.

    The last chunk ends with the last image; what it shares with the one before is invisible in it.
    """
    images = keys.shape[3]
    size = min(images, images_per_chunk)

    def cut(number):
        start = jnp.minimum(number * size, images - size)
        of_layer = lambda x: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=3)[layer], x)
        seen = jax.lax.dynamic_slice_in_dim(visible, start, size, axis=2)
        return _Chunk(of_layer(keys), of_layer(values), seen & (start + jnp.arange(size) >= number * size))

    return -(-images // size), cut


def _join_chunks(x, images):
    """[chunks, B, K, J, L, D] -> [B, K, I, L, D]"""
    chunks, B, K, size, L, D = x.shape
    whole = jnp.moveaxis(x[:-1], 0, 2).reshape(B, K, -1, L, D)
    return jnp.concatenate([whole, x[-1, :, :, chunks * size - images :]], axis=2)


def _attend_chunk(q, k, v, visible):
    flat_k, flat_v = (_flat(dequantize(x, q.dtype)) for x in (k, v))
    return attend(q, flat_k, flat_v, jnp.repeat(visible, k.shape[3], axis=-1))


def _backward_chunk(q, chunk, lse, shift, d_out):
    """Gradients of one chunk: d_q [B, H, T, D], d_k and d_v [B, K, J, L, D], in float32."""
    k, v, visible = chunk
    K, D = k.shape[1], q.shape[3]
    lse, shift, d_out = (group(x, K) for x in (lse[..., None], shift[..., None], d_out.astype(v.dtype)))  # [B, K, G, T, .]
    seen = jnp.repeat(visible, k.shape[3], axis=-1)[:, None, None]  # [B, 1, 1, T, J*L]
    flat_k, flat_v = _flat(k), _flat(v)
    weights = jnp.exp(jnp.where(seen, attention_scores(q, flat_k) - lse, MASKED))  # [B, K, G, T, J*L]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_v = einsum("bkgtc,bkgtd->bkcd", weights.astype(v.dtype), d_out)
    d_weights = einsum("bkgtd,bkcd->bkgtc", d_out, flat_v)
    d_scores = (weights * (d_weights + shift) * D**-0.5).astype(q.dtype)
    d_q = einsum("bkgtc,bkcd->bkgtd", d_scores, flat_k)
    d_k = einsum("bkgtc,bkgtd->bkcd", d_scores, group(q, K))
    return d_q.reshape(q.shape), d_k.reshape(k.shape), d_v.reshape(v.shape)


def _flat(x):
    B, K, J, L, D = x.shape
    return x.reshape(B, K, J * L, D)
