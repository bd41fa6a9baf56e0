"""Options of the TPU's compiler that differ from its defaults, with what its own clock (docs/tpu.md) says of them."""

from owl3_jax.sharding import tpu_kind

# Products with weights that are gathered: whole, in the background, in place of a loop over parts of them. The 1B's stage 3 on
# v5e:2x2 takes 1.23 s in place of 1.53 s: the loop's products are small, and their results are copied together.
_GATHER_WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# Products with a single position as products, in place of sums of element-wise ones: a token after 4096 images on v5p takes
# 34 ms in place of 42 ms.
_ONE_POSITION = {"xla_tpu_enable_dot_strength_reduction": "false"}
# KiB of the memory beside the units that one operation may use, for larger tiles of products. By default it is 16 MiB of the
# 128 that v5e and v6e have, and of the 64 of a core of v5p and tpu7x. The 7B's stage 3 on v5p:4x4x8 takes 4.93 s, not 5.89 s;
# the token after 4096 images, 30 ms.
_SCOPED = {
    "TPU v5 lite": "65536",
    "TPU v5e": "65536",
    "TPU v6 lite": "65536",
    "TPU v6e": "65536",
    "TPU v5": "49152",
    "TPU v5p": "49152",
    "TPU7x": "49152",
}

Options = dict[str, str]


def training_options() -> Options:
    """For programs that train, on the devices of the mesh in force."""
    return _for_tpus(_GATHER_WHOLE)


def answering_options() -> Options:
    """For programs that answer, on the devices of the mesh in force."""
    return _for_tpus(_ONE_POSITION)


def _for_tpus(options: Options) -> Options:
    kind = tpu_kind()
    if kind is None:
        return {}
    return options | ({"xla_tpu_scoped_vmem_limit_kib": _SCOPED[kind]} if kind in _SCOPED else {})
