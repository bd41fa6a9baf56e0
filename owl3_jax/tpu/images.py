"""What a compiled train step does with images: whether it holds scores of text over images, and what it gathers."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from jax.sharding import Mesh

from owl3_jax.config import Config
from owl3_jax.hlo import Array, Module, arrays
from owl3_jax.sharding import devices_along

_GATHERS = ("all-gather", "all-reduce")  # XLA gathers by sums of padded parts, too


class Rows(NamedTuple):
    """Sizes of a batch by which its arrays are recognised."""

    positions: int  # of a row, on one device
    images: int  # of a row, on one device
    image_tokens: int  # of an image
    width: int  # numbers of an image token, at most
    features: Array  # of all images that are computed at once, over all devices

    @classmethod
    def of(cls, config: Config, mesh: Mesh) -> "Rows":
        """The sizes of a run."""
        data, model, tokens = config.data, config.model, config.model.vision.tokens_per_image
        context = devices_along("image", mesh)
        images = data.rows // config.train.microbatches * data.images_per_row
        features = Array("bf16" if config.compute.dtype == "bfloat16" else "f32", (images, tokens, model.hidden_size))
        width = max(model.hidden_size, model.vision.hidden_size)
        return cls(data.tokens_per_row // context, -(-data.images_per_row // context), tokens, width, features)


class Gathered(NamedTuple):
    """An array that a collective operation leaves on each device."""

    array: Array
    name: str  # of the operation in the model; empty if unknown to the compiler


class Facts(NamedTuple):
    """What a module does with images; arrays are those of one device.

    Scores are recognised by their dims. Where a row has as many positions as an image has tokens, padded (768 in stage 1),
    those of text over images look like the vision tower's own, and are not reported.
    """

    scores: Array | None  # the largest with the positions and the image tokens of a row among its dims: scores or a mask
    largest: Gathered | None  # of all that is gathered or summed
    of_images: Gathered | None  # the largest of images
    features: Array  # `Rows.features`, for comparison


def image_facts(module: Module, rows: Rows) -> Facts:
    """Reads the shapes of all arrays of a module, including those that exist only within a fusion."""
    lines = [line for computation in module.computations.values() for line in computation]
    scores = [array for line in lines for array in arrays(line.shape) if _crosses(array, rows)]
    gathered = [
        Gathered(max(arrays(line.shape), key=lambda array: array.bytes), line.op_name.rpartition("closed_call/")[2])
        for line in lines
        if line.opcode.removesuffix("-start") in _GATHERS
    ]
    of_images = [x for x in gathered if _holds_images(x.array, rows)]
    return Facts(
        max(scores, key=lambda array: array.bytes, default=None), _largest(gathered), _largest(of_images), rows.features
    )


def _crosses(array: Array, rows: Rows) -> bool:
    dims = [dim for dim in array.dims if dim != rows.positions]
    if len(dims) == len(array.dims):
        return False
    together = any(_about(dim, rows.images * rows.image_tokens) for dim in dims)
    return together or (rows.images in dims and any(_about(dim, rows.image_tokens) for dim in dims))


def _holds_images(array: Array, rows: Rows) -> bool:
    """Whether it is of several images; the learned positions are of one."""
    several = math.prod(array.dims) > rows.image_tokens * rows.width
    return several and any(_about(dim, rows.image_tokens) for dim in array.dims)


def _about(dim: int, tokens: int) -> bool:
    """Whether a dim is this many tokens, padded to whole blocks of a kernel or not."""
    return tokens <= dim <= tokens * 9 / 8


def _largest(gathered: Iterable[Gathered]) -> Gathered | None:
    return max(gathered, key=lambda x: x.array.bytes, default=None)
