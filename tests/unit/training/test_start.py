"""What a run starts from: a checkpoint's parameters and dtypes, adapters that change nothing at first, and their merging."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import owl3_jax
from owl3_jax.cli.convert import main as convert
from owl3_jax.cli.train import main
from owl3_jax.config import Config, ConfigError, LoraConfig, MeshConfig, OptimizerConfig, SourceConfig, StartConfig
from owl3_jax.convert.load import load_params
from owl3_jax.data.digits.tokenizer import make_tokenizer
from owl3_jax.formats.checkpoint import load_config as load_model
from owl3_jax.formats.weight_files import find_tensors
from owl3_jax.host.command_line import load_config
from owl3_jax.models.owl3 import Owl3, apply
from owl3_jax.sharding import make_mesh
from owl3_jax.training.loop import train
from owl3_jax.training.start import resolve_start, start_state
from owl3_jax.training.step import TrainState
from tests import tiny

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "tiny-240728"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden checkpoint with a tokenizer that fits it."""
    directory = tmp_path_factory.mktemp("start") / "golden"
    shutil.copytree(GOLDEN, directory)
    make_tokenizer().save(directory / "tokenizer.json")
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and an image, in ms-swift's form."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copy(ROOT / "docs/images/red_seven.png", folder)
    turns = lambda asked, answer: [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    asked = "<image>Which digit is red?"
    records = [{"messages": turns(asked, f"red {number}"), "images": ["red_seven.png"]} for number in range(6)]
    records += [{"messages": turns("How many images?", str(number))} for number in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "data.jsonl"


def finetune(checkpoint: Path, source: Path, **train_fields: object) -> Config:
    config = load_config(ROOT / "configs/finetune.py")
    data = dataclasses.replace(config.data, rows=2, tokens_per_row=96, images_per_row=8, sources=(SourceConfig(str(source)),))
    return dataclasses.replace(
        config,
        start=dataclasses.replace(config.start, checkpoint=str(checkpoint)),
        data=data,
        mesh=MeshConfig(data=2, context=4),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-2, warmup_steps=0),
        train=dataclasses.replace(config.train, **train_fields),
    )


CONSTANT = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")


def params_of(state: TrainState) -> dict[str, np.ndarray]:
    return flatten_dict(jax.device_get(state.params), sep="/")


def test_model_and_processor_come_from_the_checkpoint(checkpoint, source):
    config = resolve_start(finetune(checkpoint, source))
    assert config.model == load_model(checkpoint)
    assert config.processor.tokenizer == str(checkpoint) and config.processor.media_style == "words"


def test_a_start_without_a_checkpoint_says_what_to_give(source):
    with pytest.raises(ConfigError, match=r"give --config\.start\.checkpoint DIR"):
        resolve_start(load_config(ROOT / "configs/finetune.py"))


def test_another_model_is_one_error_with_all_differences(checkpoint):
    config = Config(model=tiny.model_config(), data=dataclasses.replace(Config().data, tokens_per_row=13))
    with pytest.raises(ConfigError) as raised:
        resolve_start(dataclasses.replace(config, start=StartConfig(checkpoint=str(checkpoint))))
    assert all(f"model.{name}: " in str(raised.value) for name in ("hidden_size", "num_hidden_layers", "vision.image_size"))


def test_parameters_are_the_checkpoints_and_frozen_ones_keep_their_bits(checkpoint, source, tmp_path):
    config = finetune(checkpoint, source, trained=("projector", "hyper"), steps=3)
    stored = flatten_dict(load_params(checkpoint, load_model(checkpoint)), sep="/")
    before = params_of(start_state(resolve_start(config), make_mesh(config.mesh)))
    assert before.keys() == stored.keys()
    for path, value in stored.items():
        np.testing.assert_array_equal(before[path].astype(np.float32), value.astype(np.float32))
    after = params_of(train(config, tmp_path))
    for path, value in stored.items():
        is_trained = path.startswith(("vision2text_model/", "language_model/hyper_layers/"))
        assert after[path].dtype == (np.float32 if is_trained else value.dtype)
        assert np.array_equal(after[path], value) is not is_trained, path


LORA = LoraConfig(rank=3, alpha=7.0, target=("projector", ".*/(q_proj|o_proj|up_proj|fc1|out_proj|v_kv_proj|gate_proj)"))


def test_adapters_change_nothing_at_first_then_alone_are_trained_and_merge(checkpoint, source, tmp_path):
    config = dataclasses.replace(finetune(checkpoint, source, steps=4), lora=LORA)
    resolved = resolve_start(config)
    fresh = start_state(resolved, make_mesh(config.mesh))
    base = load_params(checkpoint, resolved.model)
    model = Owl3(resolved.model, resolved.compute)
    batch = tiny.single(17, [3, 9], side=resolved.model.vision.image_size, vocab=resolved.model.vocab_size)
    logits = lambda params: np.asarray(apply(model, jax.tree.map(jnp.asarray, params), "__call__", batch).logits)
    np.testing.assert_array_equal(logits(jax.device_get(fresh.params)), logits(base))

    state = train(config, tmp_path)
    after, stored = params_of(state), flatten_dict(base, sep="/")
    for path, value in stored.items():
        np.testing.assert_array_equal(after[path], value)
    moved = [path for path in after if path.endswith("lora_b") and np.abs(after[path]).max() > 0]
    assert len(moved) == len([path for path in after if path.endswith("lora_b")]) > 8
    unmerged = logits(jax.device_get(state.params))
    merged = logits(load_params(tmp_path, resolved.model))
    assert np.abs(unmerged - logits(base)).max() > 1e-2
    np.testing.assert_allclose(merged, unmerged, rtol=0, atol=2e-5)
    assert isinstance(owl3_jax.from_pretrained(tmp_path).generate("Which digit is red?", max_new_tokens=3), str)


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2, target=("projector",))], ids=["whole", "LoRA"])
def test_the_moving_average_is_saved_goes_on_and_is_exported_on_request(checkpoint, source, tmp_path, lora):
    """The parameters after each step are those of runs that end there; the average is computed from them here."""
    fields = {"trained": () if lora.rank else ("projector",), "ema_decay": 0.75}
    config = lambda steps: dataclasses.replace(
        finetune(checkpoint, source, steps=steps, **fields), lora=lora, optimizer=CONSTANT
    )
    path = "vision2text_model/linear/" + ("lora_b" if lora.rank else "kernel")
    expected = params_of(start_state(resolve_start(config(1)), make_mesh(config(1).mesh)))[path]
    for steps in (1, 2):  # the second is resumed
        state = train(config(steps), tmp_path / "run")
        expected = 0.75 * expected + 0.25 * params_of(state)[path]
    np.testing.assert_allclose(flatten_dict(state.ema, sep="/")[path], expected, atol=1e-7)
    convert(["--from", str(tmp_path / "run"), "--to", str(tmp_path / "last"), "--to-hf"])
    convert(["--from", str(tmp_path / "run"), "--to", str(tmp_path / "average"), "--to-hf", "--ema"])
    last, average = (find_tensors(tmp_path / name) for name in ("last", "average"))
    differ = {name for name in last if not np.array_equal(last[name].read(), average[name].read())}
    assert differ == {"vision2text_model.weight"} | (set() if lora.rank else {"vision2text_model.bias"})
    if not lora.rank:
        np.testing.assert_array_equal(
            average["vision2text_model.weight"].read(), np.asarray(state.ema["vision2text_model"]["linear"]["kernel"]).T
        )


def test_a_run_without_a_moving_average_says_so(checkpoint, tmp_path):
    convert(["--from", str(checkpoint), "--to", str(tmp_path / "converted")])
    with pytest.raises(SystemExit, match=r"has no moving average of parameters: a run has one with train\.ema_decay"):
        convert(["--from", str(tmp_path / "converted"), "--to", str(tmp_path / "x"), "--to-hf", "--ema"])


def test_a_target_that_matches_no_matrix_is_refused(checkpoint, source):
    config = dataclasses.replace(finetune(checkpoint, source), lora=LoraConfig(rank=2, target=("language_model/norm.*",)))
    with pytest.raises(ConfigError, match=r"lora\.target: 'language_model/norm\.\*' matches no matrix; they are .*q_proj"):
        start_state(resolve_start(config), make_mesh(config.mesh))


def test_the_command_says_what_is_wrong_in_a_sentence(checkpoint, source, tmp_path):
    arguments = ["--config", str(ROOT / "configs/finetune.py"), "--workdir", str(tmp_path / "run"), "--config.mesh.data=8"]
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n' * 40)
    wrong = {
        "no such directory": [str(tmp_path / "nowhere"), str(source)],
        "there is no file or folder": [str(checkpoint), str(tmp_path / "nowhere.jsonl")],
        "all samples of .* were skipped, so there is nothing to train on": [str(checkpoint), str(tmp_path / "bad.jsonl")],
    }
    for message, (start, data) in wrong.items():
        with pytest.raises(SystemExit, match=rf"(?s)error: .*{message}"):
            main([*arguments, "--config.start.checkpoint", start, "--config.data.sources", data])
