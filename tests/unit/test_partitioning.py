"""Logical names of dims on a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from owl3_jax.config import MeshConfig
from owl3_jax.sharding import abstract_mesh, constrain, devices_along, make_mesh, partition_spec, use_mesh, without_uneven_axes

MESH = MeshConfig(data=2, fsdp=2, context=2)


@pytest.mark.parametrize(
    ("size", "axes"),
    [(12, ("data", "fsdp", "context")), (6, "data"), (5, None), (0, ("data", "fsdp", "context")), (8, ("data", "fsdp"))],
)
def test_axes_that_do_not_divide_a_dim_are_left_out_from_the_end(size, axes):
    mesh = abstract_mesh(MeshConfig(data=2, fsdp=2, context=3), 12)
    assert without_uneven_axes(P(("data", "fsdp", "context")), (size,), mesh) == P(axes)


def test_axes_of_one_device_are_left_out():
    mesh = abstract_mesh(MeshConfig(data=2, context=4), 8)
    assert without_uneven_axes(P(("fsdp", "context"), "tensor"), (8, 8), mesh) == P("context", None)


def test_a_single_text_position_stays_whole():
    with use_mesh(make_mesh(MESH)):
        assert partition_spec(("batch", "text", "act_embed"), (4, 6, 3)) == P(("data", "fsdp"), "context", None)
        assert partition_spec(("batch", "text", "act_embed"), (4, 1, 3)) == P(("data", "fsdp"), None, None)
        assert [devices_along(name) for name in ("batch", "text", "vision_batch", "act_embed")] == [4, 2, 8, 1]


def test_without_a_mesh_nothing_is_split():
    assert partition_spec(("batch", "anything"), (4, 4)) is None
    assert devices_along("batch") == 1


def test_a_name_without_a_rule_is_an_error():
    with use_mesh(make_mesh(MESH)), pytest.raises(ValueError, match="no rule for embd"):
        jax.jit(lambda x: constrain(x, ("batch", "embd")))(np.zeros((8, 8), np.float32))
