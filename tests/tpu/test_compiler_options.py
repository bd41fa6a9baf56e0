"""The TPU's compiler takes our options for every chip."""

import jax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from owl3_jax.compiler_options import answering_options, training_options
from owl3_jax.sharding import computes_on, use_mesh
from owl3_jax.tpu.topology import get_topology

pytest.importorskip("libtpu", reason="it has the compiler")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compiler_takes_them(name):
    mesh = Mesh(get_topology(name).devices[:1], ("data",))
    x = jax.ShapeDtypeStruct((256, 256), "bfloat16", sharding=NamedSharding(mesh, PartitionSpec()))
    with use_mesh(mesh):
        assert computes_on("tpu")
        for options in (training_options(), answering_options()):
            assert ("xla_tpu_scoped_vmem_limit_kib" in options) == (not name.startswith("v4"))
            jax.jit(lambda x: x @ x, compiler_options=options).lower(x).compile()
