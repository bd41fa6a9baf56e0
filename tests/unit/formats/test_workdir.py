"""What training leaves, loaded like any checkpoint and exported to the official layout."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from owl3_jax.config import ComputeConfig, Config, DataConfig, MeshConfig, ModelConfig
from owl3_jax.convert.directories import to_hugging_face, to_orbax
from owl3_jax.convert.load import load_params
from owl3_jax.convert.orbax_params import StoredParameter
from owl3_jax.data.digits.tokenizer import VOCAB_SIZE, make_tokenizer
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.formats.config_json import config_json_of
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.workdir import last_checkpoint
from owl3_jax.models.owl3 import abstract_params
from owl3_jax.processing.processor import Processor
from owl3_jax.sharding import make_mesh, param_shardings
from owl3_jax.training.checkpoint import Checkpoints
from owl3_jax.training.step import TrainState
from tests import tiny

ROOT = Path(__file__).parents[3]
MODEL = tiny.model_config("static", vocab_size=VOCAB_SIZE)


def config_of(model: ModelConfig) -> Config:
    return Config(model=model, data=DataConfig(tokens_per_row=13))


@functools.cache
def random_params(model: ModelConfig) -> dict:
    """Parameters that no initialisation would give."""
    rng = np.random.default_rng(0)
    shapes = nn.unbox(abstract_params(model, ComputeConfig()))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def assert_equal(tree: object, other: object) -> None:
    assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(lambda x: x.dtype, other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def save_run(workdir: Path, model: ModelConfig, params: dict, steps: tuple[int, ...] = (3,)) -> None:
    """Checkpoints as training writes them; those before the last hold other parameters."""
    with Checkpoints(workdir, config_of(model)) as checkpoints:
        for step in steps:
            values = params if step == steps[-1] else jax.tree.map(np.zeros_like, params)
            state = TrainState(jnp.int32(step), values, (), jax.random.key(0))
            checkpoints.save(step, state, jnp.zeros((8, 5), jnp.int32))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir whose parameters were spread over a mesh when they were saved."""
    workdir = tmp_path_factory.mktemp("run")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(random_params(MODEL), param_shardings(abstract_params(MODEL, ComputeConfig()), mesh))
    save_run(workdir, MODEL, params, steps=(9, 10))
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config_of(MODEL))))
    (workdir / "metrics.jsonl").write_text("{}")
    make_tokenizer().save(workdir / "tokenizer.json")
    return workdir


def test_the_last_checkpoint_is_loaded(run):
    assert load_config(run) == MODEL
    assert_equal(load_params(run, MODEL), random_params(MODEL))


def test_onto_another_mesh(run):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    params = load_params(run, MODEL, mesh, dtype="bfloat16")
    assert_equal(jax.device_get(params), jax.tree.map(lambda x: x.astype("bfloat16"), random_params(MODEL)))
    assert jax.tree.map(lambda x: x.sharding, params) == param_shardings(abstract_params(MODEL, ComputeConfig()), mesh)


def test_padding_of_the_vocabulary_is_left_out(tmp_path):
    params = random_params(MODEL)
    table = params["language_model"]["embed_tokens"]
    padded = params["language_model"] | {"embed_tokens": np.pad(table, [(0, 3), (0, 0)], constant_values=5)}
    save_run(tmp_path / "run", MODEL, params | {"language_model": padded})
    assert_equal(load_params(tmp_path / "run", MODEL), params)
    to_hugging_face(tmp_path / "run", tmp_path / "exported")
    assert_equal(load_params(tmp_path / "exported", MODEL), params)


def test_no_device_reads_more_than_its_share(run, monkeypatch):
    sizes = []
    read = StoredParameter.read

    def recorded(parameter, index=None):
        part = read(parameter, index)
        if parameter.path == "language_model/layers/mlp/up_proj/kernel":
            sizes.append(part.size)
        return part

    monkeypatch.setattr(StoredParameter, "read", recorded)
    params = load_params(run, MODEL, make_mesh(MeshConfig(data=4, fsdp=2)))
    assert sizes and max(sizes) == params["language_model"]["layers"]["mlp"]["up_proj"]["kernel"].size // 2


def test_another_model_is_refused_by_field(run):
    other = dataclasses.replace(MODEL, form="joint", vision=dataclasses.replace(MODEL.vision, image_size=12))
    with pytest.raises(CheckpointError) as error:
        load_params(run, other)
    assert str(error.value).splitlines()[1:] == [
        "  it is of another model; use its settings",
        "  model.form: 'static' there, 'joint' in this run",
        "  model.vision.image_size: 11 there, 12 in this run",
    ]


def test_a_directory_without_checkpoints_is_named_and_stays_empty(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path} (.|\n)*no checkpoints/ \(of a training run: train first"):
        load_params(tmp_path, MODEL)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*: train first"):
        load_params(tmp_path, MODEL)


def test_only_complete_checkpoints_count(tmp_path):
    """As orbax sees it: a step is written under a temporary name, and renamed to its number when all of it is on disk."""
    directory = tmp_path / "checkpoints"
    for name in ("2", "10", "11.orbax-checkpoint-tmp-1234", "12.orbax-checkpoint-tmp", "latest", ".13"):
        (directory / name).mkdir(parents=True)
    (directory / "14").touch()
    assert last_checkpoint(tmp_path) == directory / "10"
    assert max(ocp.utils.checkpoint_steps(directory)) == 10


def test_damage_is_named(tmp_path):
    save_run(tmp_path, MODEL, random_params(MODEL))
    checkpoint = tmp_path / "checkpoints" / "3"
    (checkpoint / "params" / "manifest.ocdbt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"checkpoints/3/params (.|\n)*manifest\.ocdbt"):
        load_params(tmp_path, MODEL)
    (checkpoint / "run" / "metadata").write_text('{"config": {"model": {"future": 1}}}')
    with pytest.raises(CheckpointError, match=r"checkpoints/3 (.|\n)*run/metadata: .*no field future"):
        load_config(tmp_path)


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_export_keeps_every_bit(tmp_path, form, tied):
    config = tiny.model_config(form, tie_word_embeddings=tied)
    save_run(tmp_path / "run", config, random_params(config))
    to_hugging_face(tmp_path / "run", tmp_path / "official")
    assert load_config(tmp_path / "official") == config
    assert_equal(load_params(tmp_path / "official", config), load_params(tmp_path / "run", config))


def test_export_says_what_it_is_and_takes_tokenizer_and_processor_along(run, tmp_path):
    command = [sys.executable, "tools/convert_checkpoint.py", "--from", run, "--to", tmp_path / "official", "--to-hf"]
    subprocess.run([*command, "--dtype", "bfloat16"], check=True, cwd=ROOT, capture_output=True)
    files = {path.name: path for path in (tmp_path / "official").iterdir()}
    assert files.keys() == {"config.json", "model.safetensors", "tokenizer.json", "processor.json"}
    assert files["tokenizer.json"].read_bytes() == (run / "tokenizer.json").read_bytes()
    assert not Processor.from_pretrained(tmp_path / "official").crop  # as in training, not as in released checkpoints
    assert json.loads(files["config.json"].read_text()) == config_json_of(MODEL) | {"torch_dtype": "bfloat16"}
    assert load_config(tmp_path / "official") == MODEL


def test_a_run_is_no_official_directory(run, tmp_path):
    with pytest.raises(CheckpointError, match="orbax checkpoint already; --to-hf"):
        to_orbax(run, tmp_path / "ours")
