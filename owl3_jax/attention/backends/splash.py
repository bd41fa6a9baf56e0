"""Attention over one block of keys by JAX's own splash kernels for TPUs, forward and backward.

Splash's public function has no gradient through the log-sum-exp, which merging needs, and wants its mask while tracing; so its
kernels are called one by one (`owl3_jax.private_jax`), each with the blocks of `splash_blocks`. The tests compare them
with `owl3_jax.attention.backends.xla`.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from owl3_jax import private_jax
from owl3_jax.attention.backends.splash_blocks import Blocks
from owl3_jax.attention.inputs import BlockInputs, Gradients, OutputGradient
from owl3_jax.attention.parts import MASKED, Part
from owl3_jax.attention.visibility import Visibility
from owl3_jax.nn.padding import pad_to_multiple

_common: dict[str, Any] = {  # Any: arguments of different types
    "is_mqa": False,
    "mask_value": MASKED,
    "mask_function": lambda limits, keys: keys < limits,
    "attn_logits_soft_cap": None,
}
_layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), kernels.QKVLayout.HEAD_DIM_MINOR)
_LSE_BYTES = (
    128 * 2**20
)  # at most, in one call of the kernel: it writes each log-sum-exp 128 times, and memory has to hold them

In = TypeVar("In")
Out = TypeVar("Out")
Arrays = tuple[Shaped[Array, "..."], ...]  # [heads, length, *_]: of queries, or of keys


def attend(inputs: BlockInputs, *, interpret: bool) -> Part:
    """As `xla.attend`, with an output of the precision of `q`. `interpret`: runs anywhere, slowly.

    A log-sum-exp that nobody reads is not written: the kernel writes each one 128 times.
    """
    splash = private_jax.splash_forward()
    with_lse = inputs.reads_lse or inputs.visible is not None
    # Of the vision encoder's heads of 72 numbers the compiler prefers tokens in lanes, and would copy for the kernel.
    layout = kernels.QKVLayout.HEAD_DIM_MINOR if with_lse else kernels.QKVLayout.SEQ_MINOR

    def kernel(queries: Arrays, keys: Arrays, blocks: Blocks) -> tuple[Arrays, Arrays]:
        found = splash(
            blocks.mask_info(),
            *queries,
            *keys,
            blocks.segment_ids,
            sinks=None,
            block_sizes=kernels.BlockSizes(
                *blocks.size, blocks.size.keys_at_once, q_layout=layout, k_layout=layout, v_layout=layout
            ),
            residual_checkpoint_name=None,
            save_residuals=with_lse,
            interpret=interpret,
            **_common,
        )
        return ((found[0], *found[1]) if with_lse else (found,)), ()

    most = _most_rows(inputs) if with_lse else max(1, len(inputs.q))
    (out, *lses), _ = _in_one_sequence(kernel, (_scaled(inputs.q),), inputs, most)
    if not with_lse:
        return Part(out.astype(jnp.float32), jnp.zeros(out.shape[:3], jnp.float32))
    (lse,) = lses
    sees = lse > MASKED / 2  # where it is not, the kernel leaves garbage
    return Part(jnp.where(sees[..., None], out.astype(jnp.float32), 0.0), jnp.where(sees, lse, MASKED))


def gradients(inputs: BlockInputs, given: OutputGradient, *, interpret: bool) -> Gradients:
    """As `xla.gradients`."""
    of_queries, of_keys = private_jax.splash_gradient_of_queries(), private_jax.splash_gradient_of_keys()

    def kernel(queries: Arrays, keys: Arrays, blocks: Blocks) -> tuple[Arrays, Arrays]:
        q, d_out, lse, shift = queries
        arrays = (q, *keys, blocks.segment_ids, None, lse, d_out, -shift)
        options = {"bq": blocks.size.queries, "bkv": blocks.size.keys, "interpret": interpret, **_layouts, **_common}
        d_q = of_queries(*arrays, mask_info=blocks.mask_info(), **options)
        _, d_k, d_v = of_keys(
            *arrays,
            mask_info=blocks.mask_info(by_keys=True),
            bkv_compute=blocks.size.keys_at_once,
            # The one that computes d_q too writes a part of it for each block of keys; adding them up takes what it saves.
            use_fused_bwd_kernel=False,
            **options,
        )
        return (d_q,), (d_k, d_v)

    q, v = inputs.q, inputs.v
    lse = jnp.where(given.lse > MASKED / 2, given.lse, -MASKED)  # so that exp(score - lse) is 0 where nothing is seen
    queries = (_scaled(q), given.d_out.astype(v.dtype), lse, given.shift)
    (d_q,), (d_k, d_v) = _in_one_sequence(kernel, queries, inputs, _most_rows(inputs))
    return Gradients(d_q.astype(jnp.float32) * q.shape[3] ** -0.5, d_k, d_v)


def _most_rows(inputs: BlockInputs) -> int:
    """Rows of one call of the kernel."""
    _, H, T, _ = inputs.q.shape
    padded = T + -T % Blocks.sizes(T, inputs.k.shape[2]).queries
    return max(1, _LSE_BYTES // (H * padded * 128 * 4))


def _scaled(q: Float[Array, "B H T D"]) -> Float[Array, "B H T D"]:
    return q * q.shape[3] ** -0.5


def _precision(dtype: DTypeLike) -> contextlib.AbstractContextManager[None]:
    """The kernels have only one precision for bfloat16 products, whatever `jax_default_matmul_precision` is."""
    return jax.default_matmul_precision("default") if dtype == jnp.bfloat16 else contextlib.nullcontext()


def _in_one_sequence(
    kernel: Callable[[Arrays, Arrays, Blocks], tuple[Arrays, Arrays]],
    queries: tuple[Shaped[Array, "B H T *_"], ...],
    inputs: BlockInputs,
    most: int,
) -> tuple[Arrays, Arrays]:
    """Calls `kernel` on `queries` and the keys of `inputs`, padded to whole blocks.

    The kernel takes one row. Up to `most` rows are passed as one: without a mask as further heads, else as one sequence, where
    no position sees another row. So no row has to be cut out, and the compiler may compute queries and keys in that order.

    Returns:
        Arrays of the shapes of queries, and of keys.
    """
    keys, visible = (inputs.k, inputs.v), inputs.visible
    B, _, T, C = *queries[0].shape[:3], inputs.k.shape[2]
    joined = next(n for n in range(most, 0, -1) if B % n == 0)
    size = Blocks.sizes(T, C)

    def join(x: Shaped[Array, "B X L *_"], block: int) -> Shaped[Array, "..."]:
        x = pad_to_multiple(x, 2, block)
        by_call = x.reshape(B // joined, joined, *x.shape[1:])
        if visible is None:
            return by_call.reshape(B // joined, -1, *x.shape[2:])
        return jnp.moveaxis(by_call, 1, 2).reshape(B // joined, x.shape[1], -1, *x.shape[3:])

    def split(x: Shaped[Array, "calls X L *_"], heads: int, length: int) -> Shaped[Array, "B heads length *_"]:
        if visible is None:
            return x.reshape(B, heads, *x.shape[2:])[:, :, :length]
        by_call = x.reshape(*x.shape[:2], joined, -1, *x.shape[3:])
        return jnp.moveaxis(by_call, 2, 1).reshape(B, heads, *by_call.shape[3:])[:, :, :length]

    def call(inputs: tuple[Arrays, Arrays, Visibility | None]) -> tuple[Arrays, Arrays]:
        queries, keys, visible = inputs
        rows = 1 if visible is None else joined
        with _precision(keys[0].dtype), jax.named_scope(f"{rows}_rows"):  # which `tpu.kernels` reads
            return kernel(queries, keys, Blocks.of(T, C, visible, real_tokens))

    real_tokens = inputs.real_tokens
    by_call = lambda x: x.reshape(B // joined, joined, *x.shape[1:])
    visible = None if visible is None else jax.tree.map(by_call, visible.over_tokens(C, real_tokens))
    given = tuple(join(x, size.queries) for x in queries), tuple(join(x, size.keys) for x in keys), visible
    of_queries, of_keys = _map(call, given)
    return (
        tuple(split(x, queries[0].shape[1], T) for x in of_queries),
        tuple(split(x, keys[0].shape[1], C) for x in of_keys),
    )


def _map(call: Callable[[In], Out], given: In) -> Out:
    """`jax.lax.map`, which would copy what goes into a single call and comes out of it."""
    if jax.tree.leaves(given)[0].shape[0] > 1:
        mapped: Out = jax.lax.map(call, given)
        return mapped
    called: Out = jax.tree.map(lambda x: x[None], call(jax.tree.map(lambda x: x[0], given)))
    return called
