"""What Google publishes about each TPU generation, by the name that a topology starts with.

Read in November 2026, at https://docs.cloud.google.com/tpu/docs:

    v4     v4     operations and HBM
    v5e    v5e    all; HBM from an older version of the page (the newest has 800), DCN a 256th of a pod's
    v5p    v5p    all
    v6e    tpu7x  all, as a comparison; the page v6e has 1600 for HBM
    tpu7x  tpu7x  all

The pages count ICI in both directions together; here it is what a chip can send over all its links. Two numbers of v4 are on
none of the pages. Links: table 4 of arXiv 2304.01433 has six of 50 GB/s, known from quotations only; that this is the rate of
one direction follows from https://github.com/jax-ml/scaling-book (tpus.md), which has 45 GB/s one way. DCN is what that book
calls typical.

Clocks are those with which the matrix units of a chip reach its peak: of v4 and v5p two cores with four arrays of 128 x 128
each, of v5e one core; published are the same ones (1.05, 1.75, 1.5 GHz). Those of v6e and tpu7x are not: four arrays of
256 x 256 a core would need 1.75 and 2.2 GHz. With these the compiler expects an addition of large arrays to reach 81 and 76 %
of HBM's bandwidth, and 72 to 81 % with the published clocks of the others.

The vector unit of a core has 8 x 128 lanes, each of which does four operations a cycle (the same book).

That book also has 10 % less for the links of v5e, v5p and v6e. Bounds use the published numbers.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peaks of one chip."""

    flops: float  # bfloat16 operations a second
    hbm: float  # bytes a second
    ici: float  # bytes a second, sent to neighbours within the slice
    dcn: float  # bytes a second, sent to other slices
    clock: float  # cycles a second of a core
    links: int  # to neighbours, which share `ici`
    cores: int
    topology: str  # an example
    devices: int = 1  # that jax sees on it
    topology_options: tuple[tuple[str, str], ...] = ()  # that libtpu needs to show this many

    @property
    def vector(self) -> float:
        """Element-wise float32 operations a second."""
        return self.cores * 8 * 128 * 4 * self.clock

    @property
    def of_one_device(self) -> "Chip":
        """The part of a chip that one device is."""
        n = self.devices
        part = self._replace(flops=self.flops / n, hbm=self.hbm / n, ici=self.ici / n, dcn=self.dcn / n)
        return part._replace(cores=self.cores // n, devices=1)


CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 1200e9, 300e9, 50e9 / 8, 1.05e9, 6, 2, "v4:4x4x8", topology_options=(("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 200e9, 25e9 / 8, 1.5e9, 4, 1, "v5e:16x16"),
    "v5p": Chip(459e12, 2765e9, 600e9, 50e9 / 8, 1.75e9, 6, 2, "v5p:4x4x8"),
    "v6e": Chip(918e12, 1638e9, 400e9, 100e9 / 8, 1.75e9, 4, 1, "v6e:16x16"),
    "tpu7x": Chip(2307e12, 7380e9, 600e9, 100e9 / 8, 2.2e9, 6, 2, "tpu7x:4x4x8", devices=2),
}
