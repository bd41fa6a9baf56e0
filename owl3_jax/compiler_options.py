"""Options of the TPU's compiler that differ from its defaults, with what its own clock (docs/tpu.md) says of them."""

from jax.sharding import Mesh

# Products with weights that are gathered: whole, in the background, in place of a loop over parts of them. The 1B's stage 3 on
# v5e:2x2 takes 1.23 s in place of 1.53 s: the loop's products are small, and their results are copied together.
_GATHER_WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# KiB of the memory beside the units that one operation may use, for larger tiles of products. By default it is 16 MiB of the
# 128 that v5e and v6e have, and of the 64 of a core of v5p and tpu7x. The 7B's stage 3 on v5p:4x4x8 takes 4.93 s, not 5.89 s.
_SCOPED = {
    "TPU v5 lite": "65536",
    "TPU v5e": "65536",
    "TPU v6 lite": "65536",
    "TPU v6e": "65536",
    "TPU v5": "49152",
    "TPU v5p": "49152",
    "TPU7x": "49152",
}


def training_options(mesh: Mesh) -> dict[str, str]:
    """For programs that train on a mesh."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return {}
    scoped = _SCOPED.get(device.device_kind)
    return _GATHER_WHOLE | ({"xla_tpu_scoped_vmem_limit_kib": scoped} if scoped else {})
