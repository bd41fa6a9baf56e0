"""What a block keeps for its backward pass, by name: `compute.remat`.

The less is kept, the more is computed again. For one decoder block, weights not counted, in units of one residual stream
[B, T, E]:

    name     kept                                                     size
    none     everything that the backward pass reads                  all of it, attention scores included
    dots     results of products with weights, the attended values    about 4 + 2 F / E
    minimal  the block's input, the attended values                   2
    full     the block's input                                        1
    offload  the block's input, in the host's memory                  0

The blocks of the vision encoder follow the same policy; while they are frozen they keep nothing at all.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import checkpoint_policies as policies
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jaxtyping import Array, Shaped

from owl3_jax.config import Remat

_INPUT = "block_input"
_ATTENDED = "attended"
_PRODUCT = "product"


def _products_of_floats(primitive: Primitive, *operands: object, **parameters: object) -> bool:
    """Whether this is a product with weights, unless of integers: of these, what has been scaled back is kept (`product`)."""
    dots: bool = policies.dots_with_no_batch_dims_saveable(primitive, *operands, **parameters)
    return dots and jnp.issubdtype(getattr(operands[0], "dtype", jnp.int32), jnp.floating)


_POLICIES = {
    "dots": policies.save_from_both_policies(_products_of_floats, policies.save_only_these_names(_ATTENDED, _PRODUCT)),
    "minimal": policies.save_only_these_names(_ATTENDED),
    "full": policies.nothing_saveable,
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def block_input(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Marks the residual stream that enters a block."""
    return checkpoint_name(x, _INPUT)


def attended(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Marks what a block's attention returns, before the output projection."""
    return checkpoint_name(x, _ATTENDED)


def product(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Marks the result of a product of integers with weights, in floats."""
    return checkpoint_name(x, _PRODUCT)


def rematerialized(block: type[nn.Module], remat: Remat) -> type[nn.Module]:
    """The block's class with the remat policy applied, to be scanned."""
    return block if remat == "none" else nn.remat(block, policy=_POLICIES[remat], prevent_cse=False)
