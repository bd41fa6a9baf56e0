"""Mesh presets by name, and the tables of what they do to the released models."""

import dataclasses
import typing

import jax
import pytest
from sharding_tables import DIRECTORY, tables

from owl3_jax.config import ConfigError, MeshConfig
from owl3_jax.released import NAMED_SIZES
from owl3_jax.sharding import MESH_PRESETS, MeshPreset, abstract_mesh, make_mesh

HOW_TO = "the tables in tests/shardings are not those of the rules: run `python tools/sharding_tables.py` and review the diff"


def test_every_name_has_a_preset():
    assert list(MESH_PRESETS) == list(typing.get_args(MeshPreset))


@pytest.mark.parametrize("preset", MESH_PRESETS)
def test_presets_take_all_devices_of_a_slice(preset):
    config = MESH_PRESETS[preset]
    assert abstract_mesh(config, 64 * config.slices).size == 64 * config.slices
    if config.fsdp > jax.device_count():
        with pytest.raises(ConfigError, match=f"needs {config.fsdp} devices, there are 8"):
            make_mesh(config)
    else:
        mesh = make_mesh(config)
        assert mesh.shape == abstract_mesh(config, jax.device_count()).shape and mesh.size == jax.device_count()


def test_slices_multiply_the_data_axis():
    config = MeshConfig(data=-1, fsdp=4, slices=2)
    assert abstract_mesh(config, 32).shape == {"data": 8, "fsdp": 4, "tensor": 1, "context": 1}
    assert abstract_mesh(dataclasses.replace(config, data=2), 16).shape["data"] == 4


def test_tables_are_those_of_the_rules():
    now = tables()
    assert sorted(now) == sorted(file.name for file in DIRECTORY.iterdir()), HOW_TO
    assert {name.split(".")[0] for name in now} == set(NAMED_SIZES)
    for name, text in now.items():
        assert text == (DIRECTORY / name).read_text(), f"{name}: {HOW_TO}"
