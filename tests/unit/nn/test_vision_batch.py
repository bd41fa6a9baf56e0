"""Images over all devices, for the vision encoder."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax.config import MeshConfig
from owl3_jax.models.owl3 import Owl3, abstract_params
from owl3_jax.nn.vision_batch import from_vision_batch, to_vision_batch
from owl3_jax.sharding import batch_sharding, make_mesh, param_shardings, use_mesh
from tests.tiny import COMPUTE, model_config

MESH = MeshConfig(data=1, fsdp=2, tensor=2, context=2)


@pytest.mark.parametrize("mesh", [MESH, MeshConfig(data=2, context=4), MeshConfig(data=1, tensor=8)])
@pytest.mark.parametrize(("rows", "images"), [(1, 1), (1, 7), (3, 5), (4, 1), (4, 3), (2, 8), (4, 0)])
def test_the_line_has_all_images_and_an_equal_share_for_each_device(mesh, rows, images):
    batch = np.arange(rows * images * 3).reshape(rows, images, 3)
    with use_mesh(make_mesh(mesh)):
        line = jax.jit(to_vision_batch)(batch)
        assert len(line) % 8 == 0 and len({str(shard.index) for shard in line.addressable_shards}) == (8 if images else 1)
        np.testing.assert_array_equal(jax.jit(from_vision_batch, static_argnums=(1, 2))(line, rows, images), batch)


def test_without_a_mesh_the_line_is_row_after_row():
    batch = jnp.arange(24).reshape(2, 4, 3)
    np.testing.assert_array_equal(to_vision_batch(batch), batch.reshape(8, 3))


def test_each_device_takes_a_part_of_what_it_holds():
    batch = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), axis=-1)  # row and number of each image
    with use_mesh(make_mesh(MESH)):
        line = jax.jit(to_vision_batch)(batch)
    for shard in line.addressable_shards:  # mesh of fsdp 2, tensor 2, context 2: rows over fsdp, numbers over context
        fsdp, tensor, context = np.unravel_index(shard.device.id, (2, 2, 2))
        assert shard.data.tolist() == [[2 * fsdp + tensor, 2 * context], [2 * fsdp + tensor, 2 * context + 1]]


def test_no_device_receives_pixels_or_the_features_of_all_images():
    config, mesh, rows, images = model_config(), make_mesh(MESH), 4, 4
    boxed = abstract_params(config, COMPUTE)
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    params = jax.tree.map(place, nn.unbox(boxed), param_shardings(boxed, mesh))
    pixels = jax.ShapeDtypeStruct((rows, images, 11, 11, 3), np.uint8, sharding=batch_sharding(mesh))
    encode = lambda params, pixels: Owl3(config, COMPUTE).apply({"params": params}, pixels, method="encode_images")
    with use_mesh(mesh):
        compiled = jax.jit(encode).lower(params, pixels).compile()
    moved = re.findall(r"= (\w+)\[([\d,]*)\]\S* (?:all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text())
    assert moved and {dtype for dtype, _ in moved} == {"f32"}
    of_features = [shape for _, shape in moved if shape.endswith(f",{config.hidden_size}") and shape.count(",") > 1]
    here = rows // 2 * images // 2  # fsdp 2, context 2; the devices of `tensor` complete each other's share
    assert of_features and all(np.prod([int(size) for size in shape.split(",")[:-2]]) <= here for shape in of_features)
