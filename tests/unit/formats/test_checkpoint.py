"""Paths that are no checkpoint: what they are, and what to give instead; descriptions of converted models and runs."""

import dataclasses
import json
from pathlib import Path

import pytest

from owl3_jax.formats.checkpoint import check_path, load_config
from owl3_jax.formats.converted import read_model
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.workdir import read_run_model
from tests import tiny
from tests.unit.convert.checkpoints import GOLDEN

FETCH = (
    "no such directory; hub ids are not fetched: download with huggingface-cli download org/name --local-dir DIR, and give DIR"
)


def error_of(path: Path) -> str:
    """The one thing that is wrong with a path, to whoever asks."""
    with pytest.raises(CheckpointError) as error:
        check_path(path)
    with pytest.raises(CheckpointError) as again:
        load_config(path)
    assert str(error.value) == str(again.value)
    return str(error.value).partition("\n  ")[2]


@pytest.mark.parametrize(
    "path", ["org/name", "https://huggingface.co/org/name", "https://huggingface.co/org/name/tree/main", "hf://org/name"]
)
def test_a_hub_id_is_named_with_the_command_that_fetches_it(path):
    assert error_of(Path(path)) == FETCH


@pytest.mark.parametrize("path", ["nowhere", "/no/where", "../no", "x" * 5000, "a\0b"])
def test_a_path_that_does_not_exist(path):
    assert error_of(Path(path)) == "no such directory, nor the name of a checkpoint that ships with the package (digits)"


def test_a_message_does_not_repeat_a_path_without_end():
    with pytest.raises(CheckpointError) as error:
        check_path(Path("x" * 5000))
    assert len(str(error.value)) < 600


def test_a_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert error_of(tmp_path / "model.safetensors") == f"it is a file; give the directory of the checkpoint, such as {tmp_path}"
    assert error_of(tmp_path / "model.safetensors" / "below").startswith("no such directory")


def test_an_empty_directory(tmp_path):
    assert error_of(tmp_path).startswith("it is empty: no config.json (of an official checkpoint), no model.json")


@pytest.mark.parametrize("given", [".", "models--org--name", "models--org--name/snapshots"])
@pytest.mark.parametrize("with_main", [True, False])
def test_the_cache_of_a_repository_is_named_with_its_snapshots(tmp_path, given, with_main):
    repository = tmp_path / "models--org--name"
    for snapshot in ("aaa", "bbb"):
        (repository / "snapshots" / snapshot).mkdir(parents=True)
        (repository / "snapshots" / snapshot / "config.json").touch()
    if with_main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("bbb")
    wanted = [repository / "snapshots" / name for name in (["bbb"] if with_main else ["aaa", "bbb"])]
    expected = f"it is the cache of a hub repository; give a snapshot: {' or '.join(map(str, wanted))}"
    assert error_of(tmp_path / given) == expected


def test_a_cache_without_a_whole_snapshot(tmp_path):
    (tmp_path / "snapshots" / "aaa").mkdir(parents=True)
    assert "none of its snapshots has a config.json" in error_of(tmp_path)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("content", "base"),
    [('{"base_model_name_or_path": "org/base"}', " (adapter_config.json names org/base)"), ("[]", ""), ("{", "")],
)
def test_an_adapter_without_its_model(tmp_path, content, base, with_config):
    (tmp_path / "adapter_config.json").write_text(content)
    (tmp_path / "adapter_model.safetensors").touch()
    if with_config:
        (tmp_path / "config.json").write_text("{}")
    assert error_of(tmp_path).startswith(f"a PEFT adapter; give the base model's directory{base}")


def test_a_checkpoint_with_an_adapter_beside_it_is_one(tmp_path):
    for file in (GOLDEN / "tiny-tied").iterdir():
        (tmp_path / file.name).symlink_to(file.absolute())
    (tmp_path / "adapter_config.json").write_text("{}")
    assert load_config(tmp_path) == load_config(GOLDEN / "tiny-tied")


MODEL = json.loads(json.dumps(dataclasses.asdict(tiny.model_config("joint"))))
DAMAGE = [
    (None, "model is null; it must be an object"),
    ([], "model is []; it must be an object"),
    (MODEL | {"hidden_size": "64"}, 'model.hidden_size is "64"; it must be an integer'),
    (MODEL | {"hyper_layers": None}, "model.hyper_layers is null; it must be a list of integers"),
    (MODEL | {"hyper_layers": [1.5]}, "model.hyper_layers[0] is 1.5; it must be an integer"),
    (MODEL | {"rope_theta": float("nan")}, "model.rope_theta is NaN; it must be a finite number"),
    (MODEL | {"vision": []}, "model.vision is []; it must be an object"),
    (MODEL | {"vision": {"image_size": "1"}}, 'model.vision.image_size is "1"; it must be an integer'),
    (MODEL | {"form": 3}, "model.form is 3; it must be a string"),
    (MODEL | {"future": 3}, "ModelConfig has no field future"),
]


@pytest.mark.parametrize(("model", "problem"), DAMAGE)
def test_the_description_of_a_converted_model_is_checked_by_key(tmp_path, model, problem):
    (tmp_path / "model.json").write_text(json.dumps({"model": model, "tied_head": False}))
    with pytest.raises(CheckpointError) as error:
        read_model(tmp_path)
    assert f"model.json: {problem}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "it is []; it must be an object"),
        ("{", "it is not JSON"),
        (json.dumps({"model": MODEL}), "tied_head is null; it must be true or false"),
    ],
)
def test_a_model_json_that_is_none(tmp_path, content, problem):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_model(tmp_path)
    assert f"model.json: {problem}" in str(error.value)


@pytest.mark.parametrize(("model", "problem"), DAMAGE)
def test_the_description_of_a_run_is_checked_by_key(tmp_path, model, problem):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata").write_text(json.dumps({"config": {"model": model}}))
    with pytest.raises(CheckpointError) as error:
        read_run_model(tmp_path)
    assert problem in str(error.value) and "run/metadata: " in str(error.value)


def test_whole_descriptions_are_read(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"model": MODEL, "tied_head": True}))
    assert read_model(tmp_path) == (tiny.model_config("joint"), True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metadata").write_text(json.dumps({"config": {"model": MODEL}}))
    assert read_run_model(tmp_path) == tiny.model_config("joint")
