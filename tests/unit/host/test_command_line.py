import dataclasses
from pathlib import Path

import pytest

from owl3_jax.config import Config, ConfigError, MeshConfig
from owl3_jax.host.command_line import load_config, parse


@dataclasses.dataclass(frozen=True)
class Flags:
    """Does something with a run."""

    workdir: Path  # of the run
    tries: int = 3  # how often


CONFIG = """
from owl3_jax.config import Config, TrainConfig


def get_config():
    return Config(train=TrainConfig(steps=77))
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")  # so that no message is broken into lines
    path = tmp_path / "run.py"
    path.write_text(CONFIG)
    return path


def parse_line(config_file: Path, *rest: str) -> tuple[Config, Flags]:
    return parse(Flags, ["--config", str(config_file), "--workdir", "runs/x", *rest])


def test_the_file_gives_the_config_and_the_flags_their_values(config_file: Path) -> None:
    config, flags = parse_line(config_file, "--tries", "5")
    assert config == load_config(config_file)
    assert config.train.steps == 77
    assert flags == Flags(workdir=Path("runs/x"), tries=5)


@pytest.mark.parametrize("override", [["--config.train.steps=100"], ["--config.train.steps", "100"]])
def test_an_override_changes_one_field(config_file: Path, override: list[str]) -> None:
    config, _ = parse_line(config_file, *override)
    before = load_config(config_file)
    assert config == dataclasses.replace(before, train=dataclasses.replace(before.train, steps=100))


def test_overrides_of_every_kind_of_field(config_file: Path) -> None:
    line = "--config.model.hyper_layers 2 5 --config.data.pack=False --config.model.form=joint --config.optimizer.b1=3e-4"
    config, _ = parse_line(config_file, *line.split())
    assert config.model.hyper_layers == (2, 5)
    assert config.data.pack is False
    assert config.model.form == "joint"
    assert config.optimizer.b1 == 3e-4


def test_fields_that_only_fit_together_can_be_overridden_together(config_file: Path) -> None:
    config, _ = parse_line(config_file, "--config.model.max_position_embeddings=64", "--config.data.tokens_per_row=64")
    assert config.data.tokens_per_row == config.model.max_position_embeddings == 64


def test_a_named_mesh_replaces_that_of_the_file_and_its_fields_can_be_overridden(config_file: Path) -> None:
    config, _ = parse_line(config_file, "--config.mesh.context=2", "--mesh", "tensor4")
    before = load_config(config_file)
    assert config == dataclasses.replace(before, mesh=MeshConfig(data=1, fsdp=-1, tensor=4, context=2))


@pytest.mark.parametrize(
    ("argument", "messages"),
    [
        ("--mesh=tensor5", ["--mesh", "tensor5", "'tensor4'"]),
        ("--config.train.stps=5", ["--config.train.stps", "Perhaps you meant", "--config.train.steps INT"]),
        ("--config.train.steps=many", ["--config.train.steps", "int", "many"]),
        ("--config.model.form=gatd", ["--config.model.form", "gatd", "('gated', 'static', 'joint')"]),
        ("--config.data.pack=maybe", ["--config.data.pack", "maybe", "('True', 'False')"]),
        ("--config.train.steps=-3", ["TrainConfig.steps must be positive, got -3"]),
        ("--config.data.tokens_per_row=99999", ["data.tokens_per_row 99999 exceeds model.max_position_embeddings 32768"]),
        ("--wrkdir=x", ["--wrkdir"]),
    ],
)
def test_a_wrong_flag_is_an_error_that_says_what_would_be_right(
    config_file: Path, capsys: pytest.CaptureFixture[str], argument: str, messages: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_line(config_file, argument)
    printed = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert [message for message in messages if message not in printed] == []
    assert "Traceback" not in printed


def test_missing_flags_are_named(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(Flags, [])
    printed = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "--config PATH" in printed
    assert "--workdir PATH" in printed


def test_help_shows_fields_with_comments_and_the_defaults_of_the_file(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")  # one column of fields, in whole lines
    with pytest.raises(SystemExit) as exit_info:
        parse_line(config_file, "--help")
    printed = capsys.readouterr().out
    assert exit_info.value.code == 0
    for text in ("Does something with a run.", "how often (default: 3)", "--config.train.steps INT", "(default: 77)"):
        assert text in printed
    assert "images whose attention scores are in memory at the same time" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no function get_config"),
        ("def get_config():\n    return {}\n", "must return a Config, got dict"),
        (
            "from owl3_jax.config import *\ndef get_config():\n    return Config(train=TrainConfig(steps=0))\n",
            "steps must be positive",
        ),
    ],
)
def test_a_wrong_config_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        parse_line(path)
    printed = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("argument", ["", ":7b-240728"])
def test_a_missing_config_file_is_named_without_its_argument(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*absent\.py: configs are given by path and do not ship"):
        load_config(f"{tmp_path / 'absent.py'}{argument}")


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is not a Python file"):
        load_config(path)


CHOOSING = """
from typing import Literal

from owl3_jax.config import Config, TrainConfig


def get_config(size: Literal["7", "8"]) -> Config:
    return Config(train=TrainConfig(steps=int(size)))
"""


@pytest.mark.parametrize("as_text", [str, Path])
def test_a_config_may_take_an_argument(tmp_path: Path, as_text: type) -> None:
    path = tmp_path / "run.py"
    path.write_text(CHOOSING)
    assert load_config(as_text(f"{path}:8")).train.steps == 8
    config, _ = parse(Flags, ["--config", f"{path}:8", "--workdir", "x", "--config.train.log_every=3"])
    assert (config.train.steps, config.train.log_every) == (8, 3)


def test_a_default_argument_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    path.write_text(CHOOSING.replace('["7", "8"]', '["7", "8"] = "7"'))
    assert [load_config(f"{path}{argument}").train.steps for argument in ("", ":8")] == [7, 8]


def test_a_file_whose_name_has_a_colon_is_meant_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(CHOOSING)
    (tmp_path / "run.py:8.py").write_text(CONFIG)
    assert load_config(tmp_path / "run.py:8.py").train.steps == 77


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        (CONFIG, ":7", r"takes no argument, got '7': give --config .*run\.py$"),
        (CHOOSING, "", r"needs an argument, one of 7, 8: give --config .*run\.py:ARGUMENT$"),
        (CHOOSING, ":9", r"does not know the argument '9'; it takes one of 7, 8$"),
        (CHOOSING.replace('Literal["7", "8"]', "str"), "", r"needs an argument: give --config .*run\.py:ARGUMENT$"),
    ],
)
def test_a_wrong_argument_is_an_error(tmp_path: Path, capsys, text: str, argument: str, message: str) -> None:
    path = tmp_path / "run.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(f"{path}{argument}")
    with pytest.raises(SystemExit, match="2"):
        parse(Flags, ["--config", f"{path}{argument}", "--workdir", "x"])
    assert capsys.readouterr().err.startswith("error: get_config() of ")


def test_help_says_where_configs_come_from(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(Flags, ["--help"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--config PATH[:ARGUMENT]" in printed and "do not ship with the package" in printed
