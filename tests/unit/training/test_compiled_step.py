"""A step that was compiled before does what the run's own does, and is refused by any other run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from owl3_jax import sharding
from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig, TrainConfig
from owl3_jax.training import compiled_step
from owl3_jax.training.compiled_step import CompiledStepError
from owl3_jax.training.step import abstract_state, example_batch, init_state, make_train_step
from tests.tiny import model_config, pad, single, stack

CONFIG = Config(
    model=model_config(),
    compute=ComputeConfig(dtype="float32", images_per_chunk=2),
    mesh=MeshConfig(data=1, fsdp=2),
    data=DataConfig(rows=2, tokens_per_row=13, images_per_row=2),
    train=TrainConfig(steps=20),
)
BATCH = stack([single(13, [2, 5], seed=1), pad(single(11, [0], seed=2), 13, 2)])


@pytest.fixture(scope="module", params=[(2, 3), (3, 2)])
def mesh(request):
    """On TPUs a mesh follows the wires, not the numbers of devices."""
    return sharding.make_mesh(CONFIG.mesh, [jax.devices()[number] for number in request.param])


@pytest.fixture(scope="module")
def compiled(mesh):
    return make_train_step(CONFIG, mesh).lower(abstract_state(CONFIG, mesh), example_batch(CONFIG)).compile()


@pytest.fixture(scope="module")
def saved(mesh, compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "step.bin"
    compiled_step.save(path, CONFIG, mesh, compiled)
    return path


def changed(section: str, **fields) -> Config:
    return dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **fields)})


def test_it_steps_as_the_one_that_was_saved(mesh, compiled, saved):
    loaded = compiled_step.load(saved, changed("train", log_every=3, seed=5), mesh)
    state, batch = init_state(CONFIG, mesh), sharding.shard_batch(BATCH, mesh)
    results = [step(jax.tree.map(jnp.copy, state), batch) for step in (compiled, loaded)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    numbers = lambda tree: [np.asarray(x) for x in jax.tree.leaves(tree) if not is_key(x)]
    for a, b in zip(*map(numbers, results), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (changed("optimizer", learning_rate=0.5), "optimizer.learning_rate: 2e-05 there, 0.5 in this run"),
        (changed("data", tokens_per_row=17), "data.tokens_per_row: 13 there, 17"),
        (changed("train", steps=21), "train.steps: 20 there, 21"),
    ],
)
def test_a_step_of_another_run_is_refused(mesh, saved, config, named):
    with pytest.raises(CompiledStepError, match=named):
        compiled_step.load(saved, config, mesh)


def test_how_samples_are_made_does_not_matter(mesh, saved):
    assert callable(compiled_step.load(saved, changed("processor", crop=True), mesh))


def test_other_versions_and_devices_are_refused(mesh, saved, tmp_path, monkeypatch):
    header, _, payload = saved.read_bytes().partition(b"\n")
    other = tmp_path / "other.bin"
    other.write_bytes(header.replace(b"2 x cpu", b"4 x TPU v5 lite") + b"\nnever unpickled" + payload)
    with pytest.raises(CompiledStepError, match="devices: '4 x TPU v5 lite' there, '2 x cpu' in this run"):
        compiled_step.load(other, CONFIG, mesh)
    monkeypatch.setattr(compiled_step.importlib.metadata, "version", lambda package: f"{package} 99")
    with pytest.raises(CompiledStepError, match="'jaxlib 99' in this run"):
        compiled_step.load(saved, CONFIG, mesh)


@pytest.mark.parametrize("content", [b"", b"\x80\x05pickle", b"[1]\npayload"])
def test_any_other_file_is_refused(mesh, tmp_path, content):
    path = tmp_path / "step.bin"
    path.write_bytes(content)
    with pytest.raises(CompiledStepError, match="not a file of owl3 compile --save"):
        compiled_step.load(path, CONFIG, mesh)
