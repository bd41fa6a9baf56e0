"""What Google publishes of each TPU generation, by the name that a topology starts with.

Sources, read in 2026: the pages v4, v5e, v5p, v6e and tpu7x under https://docs.cloud.google.com/tpu/docs, for v4's links the
paper "TPU v4: An Optically Reconfigurable Supercomputer" (six links of 50 GB/s each way). The pages give ICI bandwidth in
both directions together, or in bits a second and one direction; here it is what a chip can send over all its links.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip."""

    flops: float  # bfloat16 operations a second
    hbm: float  # bytes a second
    ici: float  # bytes a second, sent to neighbours within the slice
    dcn: float | None  # bytes a second, sent to other slices; None: not published
    topology: str  # an example
    devices: int = 1  # that jax sees of it
    topology_options: tuple[tuple[str, str], ...] = ()  # that libtpu needs to show so many


CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 1200e9, 300e9, None, "v4:4x4x8", topology_options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 200e9, 25e9 / 8, "v5e:16x16"),
    "v5p": Chip(459e12, 2765e9, 600e9, 50e9 / 8, "v5p:4x4x8"),
    "v6e": Chip(918e12, 1638e9, 400e9, 100e9 / 8, "v6e:16x16"),
    "tpu7x": Chip(2307e12, 7380e9, 600e9, 100e9 / 8, "tpu7x:4x4x8", devices=2),
}
