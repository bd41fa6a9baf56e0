"""The images of all rows as one batch for the vision encoder: every device encodes its share, and no pixel moves.

Rows are split over the devices of `batch`, the images of a row over those of `image`. The remaining devices (those of `tensor`)
hold copies of the same images, and each of them takes a part. The vision batch is ordered accordingly, device by device, and
padded to a multiple of the number of devices.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Shaped

from owl3_jax.nn.padding import pad_to_multiple
from owl3_jax.sharding import constrain, devices_along


class _Devices(NamedTuple):
    rows: int
    images: int  # of one row
    copies: int  # of the same images

    @classmethod
    def of(cls, rows: int) -> "_Devices":
        """How the devices share a batch of `rows` rows. Where they do not divide the rows, each holds a copy of all images."""
        total, over_rows = devices_along("vision_batch"), devices_along("batch")
        if rows % over_rows:
            return cls(1, 1, total)
        over_images = devices_along("image")
        return cls(over_rows, over_images, total // (over_rows * over_images))

    def share_of(self, rows: int, images: int) -> tuple[int, int]:
        """Rows, and images of each, that one device holds."""
        return rows // self.rows, -(-images // self.images)


def to_vision_batch(images: Shaped[Array, "B I *image"]) -> Shaped[Array, "X *image"]:
    """The images of all rows, and padding, in the order of the devices that hold them."""
    devices, image = _Devices.of(len(images)), images.shape[2:]
    rows, count = devices.share_of(*images.shape[:2])
    images = pad_to_multiple(images, 1, devices.images)
    by_device = images.reshape(devices.rows, rows, devices.images, count, *image).swapaxes(1, 2)
    shares = by_device.reshape(devices.rows * devices.images, rows * count, *image)
    flat = jax.lax.collapse(pad_to_multiple(shares, 1, devices.copies), 0, 2)
    return constrain(flat, ("vision_batch", *(None for _ in image)))


def from_vision_batch(x: Shaped[Array, "X *image"], rows: int, images: int) -> Shaped[Array, "B I *image"]:
    """Undoes `to_vision_batch` for B = `rows` rows of I = `images` images, without the padding."""
    devices, image = _Devices.of(rows), x.shape[1:]
    rows_here, count = devices.share_of(rows, images)
    holders = devices.rows * devices.images
    shares = x.reshape(holders, len(x) // holders, *image)[:, : rows_here * count]
    by_row = shares.reshape(devices.rows, devices.images, rows_here, count, *image).swapaxes(1, 2)
    return by_row.reshape(rows, devices.images * count, *image)[:, :images]
