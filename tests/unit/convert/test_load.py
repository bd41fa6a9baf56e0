"""Parameters straight onto a mesh: the same values, in the rules' shardings."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from owl3_jax.config import ComputeConfig, MeshConfig
from owl3_jax.convert.directories import to_orbax
from owl3_jax.convert.load import load_params
from owl3_jax.convert.official import Parameter
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.sharding import make_mesh, param_shardings
from tests.unit.convert.checkpoints import GOLDEN


@pytest.mark.parametrize("converted", [False, True])
def test_onto_a_mesh(tmp_path, converted):
    directory = GOLDEN / "tiny-240728"
    config = load_config(directory)
    expected = load_params(directory, config)
    if converted:
        to_orbax(directory, tmp_path / "ours")
        directory = tmp_path / "ours"
        jax.tree.map(np.testing.assert_array_equal, load_params(directory, config), expected)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    params = load_params(directory, config, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert jax.tree.map(lambda x: x.sharding, params) == param_shardings(abstract_params(config, ComputeConfig()), mesh)
    assert not params["language_model"]["embed_tokens"].sharding.is_fully_replicated


@pytest.mark.parametrize("converted", [False, True])
def test_casts_while_reading(tmp_path, converted):
    directory = GOLDEN / "tiny-tied"
    config = load_config(directory)
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), load_params(directory, config))
    if converted:
        to_orbax(directory, tmp_path / "ours")
        directory = tmp_path / "ours"
    for mesh in (None, make_mesh(MeshConfig(fsdp=2))):
        params = load_params(directory, config, mesh, dtype="bfloat16")
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
        jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("converted", [False, True])
def test_the_vocabulary_is_padded_with_rows_of_zeros(tmp_path, converted):
    directory = GOLDEN / "tiny-240728"
    config, head = load_config(directory), ("language_model", "lm_head")
    expected = flatten_dict(load_params(directory, config))
    if converted:
        to_orbax(directory, tmp_path / "ours")
        directory = tmp_path / "ours"
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    for params in (
        load_params(directory, config, vocab_multiple=7),
        load_params(directory, config, mesh, vocab_multiple=8 * 67),
    ):
        flat = flatten_dict(params)
        padding = flat[head].shape[0] - config.vocab_size
        assert padding > 0
        for path in (head, ("language_model", "embed_tokens")):
            np.testing.assert_array_equal(flat.pop(path), np.pad(expected[path], [(0, padding), (0, 0)]))
        assert all(np.array_equal(value, expected[path]) for path, value in flat.items())
    assert params["language_model"]["lm_head"].sharding.spec == P("tensor", None)


def test_no_device_reads_more_than_its_share(monkeypatch):
    config = load_config(GOLDEN / "tiny-240728")
    sizes = []
    read = Parameter.read

    def recorded(parameter, index=None):
        part = read(parameter, index)
        if parameter.entry.path == "language_model/embed_tokens":
            sizes.append(part.size)
        return part

    monkeypatch.setattr(Parameter, "read", recorded)
    params = load_params(GOLDEN / "tiny-240728", config, make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)))
    whole = flatten_dict(params, sep="/")["language_model/embed_tokens"].size
    assert sizes and max(sizes) == whole // 8
