"""Options of the TPU's compiler are for TPUs: tests/tpu has those that they get."""

import jax
from jax.sharding import Mesh

from owl3_jax.compiler_options import answering_options, training_options
from owl3_jax.sharding import computes_on, use_mesh


def test_other_devices_get_none():
    assert not computes_on("tpu") and training_options() == answering_options() == {}
    with use_mesh(Mesh(jax.devices()[:1], ("data",))):
        assert not computes_on("tpu") and training_options() == answering_options() == {}
