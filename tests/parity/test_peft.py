"""LoRA between training runs, PEFT directories, PEFT itself on the PyTorch model, and our inference: the same logits in all."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import owl3_jax
from owl3_jax.cli.convert import main as convert
from owl3_jax.config import ConfigError, LoraConfig, MeshConfig
from owl3_jax.convert.load import load_params
from owl3_jax.formats.checkpoint import load_config as load_model
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from owl3_jax.formats.weight_files import find_tensors
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.sharding import make_mesh
from owl3_jax.training.frozen import trained_paths
from owl3_jax.training.loop import train
from owl3_jax.training.start import resolve_start, start_state
from tests import tiny
from tests.parity.torch_owl3 import TorchOwl3
from tests.unit.training.test_start import GOLDEN, checkpoint, finetune, source  # noqa: F401, fixtures

LORA = LoraConfig(rank=3, alpha=7.0, target=("projector", ".*/(q_proj|o_proj|up_proj|fc1|out_proj|v_kv_proj|gate_proj)"))
MODEL = load_model(GOLDEN)
BATCH = tiny.single(17, [3, 9], side=MODEL.vision.image_size, vocab=MODEL.vocab_size)


@pytest.fixture(scope="module")
def run(checkpoint, source, tmp_path_factory) -> Path:  # noqa: F811
    """The workdir of a run with adapters."""
    workdir = tmp_path_factory.mktemp("run") / "lora"
    train(dataclasses.replace(finetune(checkpoint, source, steps=4), lora=LORA), workdir)
    return workdir


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("peft") / "adapter"
    convert(["--from", str(run), "--to", str(directory), "--to-hf", "--adapter"])
    return directory


def logits_of(params: object) -> np.ndarray:
    model = Owl3(MODEL, dataclasses.replace(tiny.COMPUTE))
    return np.asarray(apply(model, jax.tree.map(jnp.asarray, params), "__call__", BATCH).logits)[0]


def torch_model() -> TorchOwl3:
    model = TorchOwl3(MODEL)
    state = {name: torch.from_numpy(tensor.read().astype(np.float32)) for name, tensor in find_tensors(GOLDEN).items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not [name for name in missing if "lm_head" not in name]
    return model.double()


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    pixels = torch.from_numpy(BATCH.pixels[0].transpose(0, 3, 1, 2)).double() / 127.5 - 1
    with torch.no_grad():
        return model(
            torch.from_numpy(BATCH.tokens[0]).long(), pixels, torch.from_numpy(BATCH.image_positions[0]).long()
        ).logits.numpy()


def test_checkpoints_hold_the_adapters_alone(run):
    (params,) = run.glob("checkpoints/*/params")
    stored = json.loads((params / "_METADATA").read_text())["tree_metadata"]
    assert stored and all("lora_" in name for name in stored)
    size = sum(file.stat().st_size for file in params.rglob("*") if file.is_file())
    assert size < sum(tensor.nbytes for tensor in find_tensors(GOLDEN).values())


def test_peft_itself_computes_the_same_logits(run, adapter):
    base = torch_model()
    before = torch_logits(base)
    model = peft.PeftModel.from_pretrained(base, str(adapter)).double()
    ours = logits_of(load_params(run, MODEL))
    assert np.abs(torch_logits(model) - before).max() > 1e-2
    np.testing.assert_allclose(torch_logits(model), ours, atol=2e-5, rtol=0)
    np.testing.assert_allclose(torch_logits(model.merge_and_unload()), ours, atol=2e-5, rtol=0)


def test_an_adapter_loads_for_inference(run, adapter, checkpoint):  # noqa: F811
    ours, merged = (owl3_jax.from_pretrained(*paths) for paths in ((run,), (checkpoint,)))
    with_adapter = owl3_jax.from_pretrained(checkpoint, adapter=adapter)
    sample = ours.processor("Which digit is red?")
    np.testing.assert_allclose(with_adapter.logits(sample), ours.logits(sample), atol=1e-5, rtol=0)
    assert np.abs(with_adapter.logits(sample) - merged.logits(sample)).max() > 1e-3
    params = load_params(checkpoint, MODEL, make_mesh(MeshConfig(data=2, fsdp=4)), adapter=adapter)
    expected = flatten_dict(load_params(run, MODEL), sep="/")
    for path, value in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(np.asarray(value), expected[path], atol=1e-6, rtol=1e-6)


def test_training_goes_on_from_an_adapter(run, adapter, checkpoint, source, tmp_path):  # noqa: F811
    config = finetune(checkpoint, source, steps=2)
    config = dataclasses.replace(config, start=dataclasses.replace(config.start, adapter=str(adapter)))
    expected = logits_of(load_params(run, MODEL))
    for lora in (LORA, LoraConfig()):  # as adapters again, and merged
        state = start_state(resolve_start(dataclasses.replace(config, lora=lora)), make_mesh(config.mesh))
        np.testing.assert_allclose(logits_of(jax.device_get(state.params)), expected, atol=2e-5, rtol=0)
    state = train(dataclasses.replace(config, lora=LORA), tmp_path / "on")
    assert np.abs(logits_of(jax.device_get(state.params)) - expected).max() > 1e-3
    other_rank = resolve_start(dataclasses.replace(config, lora=dataclasses.replace(LORA, rank=2)))
    with pytest.raises(ConfigError, match=r"rank 3, but lora\.rank is 2"):
        start_state(other_rank, make_mesh(config.mesh))
    too_few = resolve_start(dataclasses.replace(config, lora=dataclasses.replace(LORA, target=("projector",))))
    with pytest.raises(ConfigError, match=r"lora\.target does not match language_model/layers/self_attn/q_proj"):
        start_state(too_few, make_mesh(config.mesh))


def test_a_run_is_resumed_with_the_base_it_started_from(run, checkpoint, source, tmp_path):  # noqa: F811
    config = dataclasses.replace(finetune(checkpoint, source, steps=6), lora=LORA)
    whole = train(config, tmp_path / "whole")
    shutil.copytree(run, tmp_path / "part")  # 4 steps of the same run
    short = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, end_learning_rate=1e-2))
    resumed = train(short, tmp_path / "part")
    assert int(resumed.step) == int(whole.step) == 6
    own = trained_paths(resolve_start(config))
    for path, value in flatten_dict(resumed.params, sep="/").items():
        if path not in own:
            np.testing.assert_array_equal(value, flatten_dict(whole.params, sep="/")[path])


def test_without_its_base_a_run_says_what_is_missing(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (metadata,) = (tmp_path / "run").glob("checkpoints/*/run/metadata")
    tree = json.loads(metadata.read_text())
    tree["base"]["directory"] = str(tmp_path / "gone")
    metadata.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"the rest is in .*gone, which is not there: put it back"):
        load_params(tmp_path / "run", MODEL)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is true"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"r": 0}, "r is 0; it must be a positive integer"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
    ],
)
def test_adapters_of_other_kinds_are_refused(adapter, tmp_path, change, problem):
    shutil.copytree(adapter, tmp_path / "a")
    tree = json.loads((tmp_path / "a" / ADAPTER_CONFIG).read_text())
    (tmp_path / "a" / ADAPTER_CONFIG).write_text(json.dumps(tree | change))
    with pytest.raises(CheckpointError) as raised:
        load_params(GOLDEN, MODEL, adapter=tmp_path / "a")
    assert problem in str(raised.value).replace('"', "'")


def test_names_and_shapes_are_checked(adapter, tmp_path):
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    name = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    wrong = {
        "only lora_B is there": {key: value for key, value in tensors.items() if key != name},
        "expected [r, ": tensors | {name: tensors[name][:, 1:].copy()},
        "do not fit each other": tensors | {name: tensors[name][1:].copy()},
        "x.y: not a matrix of this model": tensors
        | {"x.y.lora_A.weight": np.ones((3, 4), np.float32), "x.y.lora_B.weight": np.ones((4, 3), np.float32)},
        "lm_head.weight: not a matrix of LoRA": tensors | {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)},
    }
    for number, (problem, changed) in enumerate(wrong.items()):
        directory = tmp_path / str(number)
        directory.mkdir()
        shutil.copy(adapter / ADAPTER_CONFIG, directory)
        save_file(changed, directory / ADAPTER_WEIGHTS)
        with pytest.raises(CheckpointError) as raised:
            load_params(GOLDEN, MODEL, adapter=directory)
        assert problem in str(raised.value)


def test_layers_may_lack_adapters_and_have_an_alpha_of_their_own(adapter, tmp_path):
    """As `layers_to_transform` and `alpha_pattern` leave it, with the names of other versions of PEFT."""
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    only = {k: v for k, v in tensors.items() if ".layers.1.self_attn.q_proj" in k and "language_model" in k}
    assert len(only) == 2
    tree = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(tree | {"use_rslora": True, "alpha_pattern": {"self_attn.q_proj": 5}}))
    save_file({k.replace(".weight", ".default.weight"): v for k, v in only.items()}, tmp_path / ADAPTER_WEIGHTS)
    path = "language_model/layers/self_attn/q_proj/kernel"
    base = flatten_dict(load_params(GOLDEN, MODEL), sep="/")[path]
    merged = flatten_dict(load_params(GOLDEN, MODEL, adapter=tmp_path), sep="/")[path]
    a, b = (next(v for k, v in only.items() if side in k) for side in ("lora_A", "lora_B"))
    expected = (5 / np.sqrt(3) * b @ a).T.reshape(base[1].shape)
    np.testing.assert_allclose(merged[1] - base[1], expected, atol=1e-5)
    np.testing.assert_array_equal(np.delete(merged, 1, 0), np.delete(base, 1, 0))


def test_a_run_without_adapters_has_none_to_export(checkpoint, tmp_path):  # noqa: F811
    with pytest.raises(SystemExit, match="not the workdir of a training run"):
        convert(["--from", str(checkpoint), "--to", str(tmp_path / "out"), "--to-hf", "--adapter"])
    assert not (tmp_path / "out").exists()
