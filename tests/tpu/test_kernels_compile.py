"""Every attention kernel compiles for every TPU generation, forward and backward, on a mesh, without a TPU.

In bfloat16 with the head sizes of the models.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from owl3_jax.attention.attend import attend
from owl3_jax.attention.inputs import IMAGES, TEXT, VISION, Plan, one_layer
from owl3_jax.attention.visibility import visibility
from owl3_jax.config import ComputeConfig, MeshConfig
from owl3_jax.sharding import make_mesh, use_mesh
from owl3_jax.tpu.topology import get_topology

pytest.importorskip("libtpu", reason="the TPU compiler; there is none for this platform")

# Text positions, half of them on each device of v4: there, where the kernels have the least memory, blocks are the largest.
TOPOLOGIES = {"v4:2x2x1": 1024, "v5e:2x2": 512, "v5p:2x2x1": 512, "v6e:2x2": 512, "tpu7x:2x2x1": 512}
B, I, L, M = 2, 16, 13, 2
COMPUTE = ComputeConfig()  # attention="auto"


def loss(vectors, ids, compute=COMPUTE):
    """Text of 7B over itself, text of 1B over images, both through output and log-sum-exp, and images over themselves."""
    positions, segments, image_positions, image_segments = ids
    over_text = visibility(positions, segments, positions, segments)
    over_images = visibility(positions, segments, image_positions, image_segments)
    text, images, vision = vectors
    outputs = (
        attend(text[0], [one_layer(*text[1:])], over_text, Plan(TEXT, COMPUTE.attention)),
        attend(images[0], [images[1:]], over_images, Plan(IMAGES, compute.attention, compute.images_per_chunk), jnp.int32(1)),
        attend(vision[0], [one_layer(*vision[1:])], None, Plan(VISION, COMPUTE.attention)),
    )
    return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(outputs))


def mesh_of(topology: str) -> Mesh:
    return make_mesh(MeshConfig(data=1, tensor=2, context=-1), get_topology(topology).devices)


def arrays(mesh, *shapes, dtype=jnp.bfloat16):
    whole = NamedSharding(mesh, PartitionSpec())
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape in shapes)


def inputs(mesh, T):
    text = arrays(mesh, (B, 14, T, 128), *[(B, 2, T, 128)] * 2)
    images = arrays(mesh, (B, 14, T, 64), *[(M, B, 2, I, L, 64)] * 2)
    vision = arrays(mesh, *[(8, 16, 729, 72)] * 3)
    return (text, images, vision), arrays(mesh, (B, T), (B, T), (B, I), (B, I), dtype=jnp.int32)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_kernels_compile(topology):
    mesh, T = mesh_of(topology), TOPOLOGIES[topology]
    with use_mesh(mesh), jax.default_matmul_precision("highest"):  # as parity checks set it
        lowered = jax.jit(jax.grad(loss)).lower(*inputs(mesh, T))
        lowered.compile()
    program = lowered.as_text()
    assert [program.count(f'kernel_name = "splash_mha_{phase}') for phase in ("fwd", "dq", "dkv")] == [3, 3, 3]
    assert not scores_of_images(program, mesh), "an array of positions x image tokens"


def test_plain_attention_has_scores_of_images():
    """What the kernels avoid is found where it is."""
    mesh, T = mesh_of("v5e:2x2"), 512
    step = lambda vectors, ids: loss(vectors, ids, dataclasses.replace(COMPUTE, attention="xla"))
    with use_mesh(mesh):
        assert scores_of_images(jax.jit(step).lower(*inputs(mesh, T)).as_text(), mesh)


def scores_of_images(program: str, mesh: Mesh) -> list[str]:
    """Types of arrays whose last dim is the image tokens of one device; keys and values have their size last."""
    return re.findall(rf"tensor<(?:\d+x){{2,}}{I * L // mesh.shape['context']}x(?:bf16|f32|i1)>", program)


def test_decoding_compiles_without_kernels():
    """One position is no work for a kernel's block of 128."""
    mesh, C = mesh_of("v5e:2x2"), 512

    def step(q, k, v, *ids):
        return attend(q, [one_layer(k, v)], visibility(*ids), Plan(TEXT, COMPUTE.attention))

    vectors = arrays(mesh, (B, 14, 1, 128), *[(B, 2, C, 128)] * 2)
    with use_mesh(mesh):
        lowered = jax.jit(step).lower(*vectors, *arrays(mesh, (B, 1), (B, 1), (B, C), (B, C), dtype=jnp.int32))
        lowered.compile()
    assert "tpu_custom_call" not in lowered.as_text()
