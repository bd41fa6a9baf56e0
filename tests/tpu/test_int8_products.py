"""Products of a train step in int8, as the TPU's compiler makes them: multiplied as integers, not turned into floats before."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from owl3_jax.config import ComputeConfig
from owl3_jax.nn.linear import Linear
from owl3_jax.sharding import use_mesh
from owl3_jax.tpu.topology import get_topology

FLOATS = ComputeConfig(dtype="bfloat16")
INT8 = dataclasses.replace(FLOATS, quantization="int8")


def products_of(compute):
    """The dtype of both operands of each product in the compiled gradient of a linear map, on a v5e."""
    mesh = Mesh(get_topology("v5e:2x2").devices[:1], ("data",))
    layer = Linear("bte,ef->btf", (512, 384), ("embed", "mlp"), compute, use_bias=False)

    def step(kernel, x):
        return jax.value_and_grad(lambda k, x: jnp.sin(layer.apply({"params": {"kernel": k}}, x)).sum(), argnums=(0, 1))(
            kernel, x
        )

    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    with use_mesh(mesh):
        lowered = jax.jit(step).lower(shape("float32", 512, 384), shape("bfloat16", 2, 256, 512))
    text = lowered.compile().as_text()
    types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    operands = re.findall(r"= \w+\[\S* (?:convolution|dot)\((%[\w.-]+), (%[\w.-]+)\)", text)
    return sorted({types[a], types[b]} == {"s8"} for a, b in operands)


def test_two_of_three_products_multiply_integers():
    assert products_of(INT8) == [False, True, True]


def test_without_it_none_does():
    assert products_of(FLOATS) == [False, False, False]
