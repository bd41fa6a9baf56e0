import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

from owl3_jax.cli.model_flags import SamplingName, parse
from owl3_jax.inference.sampling import NAMED, Sampling

GOLDEN = Path(__file__).parents[2] / "golden"


@dataclasses.dataclass(frozen=True)
class Flags:
    """A tool."""

    checkpoint: Path


def test_named_settings_are_all_there():
    assert get_args(SamplingName) == tuple(NAMED)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("spelling", ["--sampling {}", "--sampling={}"])
def test_single_options_replace_those_of_named_settings(name, spelling):
    argv = ["--checkpoint", "a", *spelling.format(name).split(), "--max_new_tokens", "7", "--stop", "x y", "z"]
    flags, sampling = parse(Flags, sampling="greedy", argv=argv)
    assert flags == Flags(Path("a"))
    assert sampling == dataclasses.replace(Sampling.named(name), max_new_tokens=7, stop=("x y", "z"))


@pytest.mark.parametrize(("checkpoint", "penalty"), [("tiny-240728", 1.05), ("tiny-241014", 1.0), ("tiny-241101", 1.0)])
def test_the_penalty_of_the_chat_is_that_of_the_first_checkpoint_alone(checkpoint, penalty):
    argv = ["--checkpoint", str(GOLDEN / checkpoint)]
    assert parse(Flags, sampling="chat", argv=argv)[1].repetition_penalty == penalty
    assert parse(Flags, sampling="chat", argv=["--checkpoint", "digits"])[1].repetition_penalty == 1.0  # its form is joint
    wanted = [*argv, "--sampling", "beam", "--repetition-penalty", "1.3"]
    assert parse(Flags, sampling="chat", argv=wanted)[1].repetition_penalty == 1.3


def test_the_tool_has_a_default_and_the_checkpoint_may_replace_it(tmp_path, capsys):
    checkpoint = ["--checkpoint", str(tmp_path)]
    assert parse(Flags, sampling="chat", argv=checkpoint) == (Flags(tmp_path), Sampling.named("chat"))
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.5, "top_k": 20}))
    suggested = parse(Flags, sampling="chat", argv=[*checkpoint, "--generation-config", "--top-k", "3"])[1]
    assert suggested == Sampling(temperature=0.5, top_k=3)
    with pytest.raises(SystemExit, match="2"):
        parse(Flags, sampling="chat", argv=[*checkpoint, "--generation-config", "--sampling", "beam"])
    assert "either --sampling or --generation-config" in capsys.readouterr().err


def test_help_shows_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(Flags, sampling="beam", argv=["--help"])
    printed = capsys.readouterr().out
    for field in dataclasses.fields(Sampling):
        assert f"--{field.name.replace('_', '-')}" in printed
    assert "(default: 2048)" in " ".join(printed.replace("│", " ").split())
