"""Crops: a large image as a grid of squares, followed by the whole image.

The grid is chosen from a fixed set of seven by the image's shape, then by its size. No grid has only one square, so even a
small image is enlarged to at least three crops. Source: the processor of mPLUG-Owl3-7B-240728.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from owl3_jax.processing.images import squash


class Grid(NamedTuple):
    """Crops along each side."""

    rows: int
    columns: int


# The first of two equally good grids is chosen.
GRIDS = (Grid(2, 2), Grid(1, 3), Grid(1, 4), Grid(3, 1), Grid(4, 1), Grid(2, 3), Grid(3, 2))


def choose_grid(width: int, height: int, size: int) -> Grid:
    """The grid for an image of `width` x `height` pixels and crops of `size` x `size`; see `grid_scores`."""
    return GRIDS[int(np.argmax(grid_scores(width, height, size)))]


def grid_scores(width: int, height: int, size: int) -> Float32[np.ndarray, " n"]:
    """How well each of `GRIDS` fits an image: 100 x the likeness of shapes + the likeness of sizes.

    Both are intersection over union of two boxes with a common corner: the grid's box, and the image's, which for the
    likeness of shapes is first scaled to the grid's width.

    Returns:
        The score of each of the n grids, bit for bit the official one.
    """
    heights, widths = np.array(GRIDS).T * size
    # The official code keeps this in an integer array, which truncates it; near ties depend on it.
    scaled_height = (np.float32(height / width) * widths.astype(np.float32)).astype(np.int64)
    same_shape = _overlap(widths, heights, widths, scaled_height)
    return np.float32(100) * same_shape + _overlap(widths, heights, width, height)


def views(image: Image.Image, grid: Grid | None, size: int) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """The crops of an RGB image row by row, then the whole image; without a grid the whole image alone.

    Yields:
        Squares of S = `size` pixels. The aspect ratio is not kept: the image is stretched to fill the grid.
    """
    if grid:
        stretched = image.resize((grid.columns * size, grid.rows * size), Image.Resampling.BICUBIC)
        for top in range(0, stretched.height, size):
            for left in range(0, stretched.width, size):
                yield np.asarray(stretched.crop((left, top, left + size, top + size)))
    yield squash(image, size)


def _overlap(
    widths: Int[np.ndarray, " n"],
    heights: Int[np.ndarray, " n"],
    width: Int[np.ndarray, " n"] | int,
    height: Int[np.ndarray, " n"] | int,
) -> Float32[np.ndarray, " n"]:
    """Intersection over union; areas are exact integers before their division."""
    intersection = np.minimum(widths, width) * np.minimum(heights, height)
    union = widths * heights + np.int64(width) * height - intersection
    return intersection.astype(np.float32) / union.astype(np.float32)
