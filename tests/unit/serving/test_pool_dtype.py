"""In which dtype pools hold keys and values."""

import dataclasses

import jax.numpy as jnp
import pytest

from owl3_jax.config import ComputeConfig
from owl3_jax.inference.paged_programs import pool_compute
from owl3_jax.serving.batch import Batch
from owl3_jax.serving.settings import EngineSettings
from tests.unit.inference.tiny_engine import runtime


@pytest.mark.parametrize(
    ("dtype", "platform", "held"),
    [
        ("bfloat16", "cpu", "float32"),
        ("bfloat16", "tpu", "bfloat16"),
        ("bfloat16", "gpu", "bfloat16"),
        ("float32", "cpu", "float32"),
    ],
)
def test_sixteen_bits_are_held_as_thirty_two_on_a_cpu_alone(dtype, platform, held):
    assert pool_compute(ComputeConfig(dtype=dtype), platform).dtype == held


def test_pools_of_a_model_in_sixteen_bits_have_as_many_bytes_as_they_may_on_a_cpu():
    short = runtime()
    short = dataclasses.replace(short, compute=dataclasses.replace(short.compute, dtype="bfloat16"))
    settings = EngineSettings(max_running=4, max_images=8, cache_gib=0.002, warm_up=False)
    pools = Batch(short, (0,), settings, 64).pools
    arrays = [*pools.text, *pools.images]
    assert {array.dtype for array in arrays} == {jnp.dtype("float32")}
    assert sum(array.nbytes for array in arrays) <= 0.002 * 2**30
