"""The command `owl3`: what it lists, how fast, and what it says about a name that is wrong."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import owl3_jax.cli
from owl3_jax.cli import SUBCOMMANDS, main

FILES = {path.stem for path in Path(owl3_jax.cli.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_it_lists_the_subcommands(argv, capsys):
    main(argv)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith("  ")] == list(SUBCOMMANDS)


@pytest.mark.parametrize(("name", "nearest"), [("generat", "generate"), ("parit", "parity"), ("evaluate", "eval")])
def test_an_unknown_subcommand_exits_with_2_and_the_nearest_name(name, nearest, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([name])
    assert f"unknown subcommand '{name}'; did you mean '{nearest}'?" in capsys.readouterr().err


def test_a_subcommand_that_is_like_no_other_lists_all(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["zzz"])
    assert f"unknown subcommand 'zzz'; known subcommands: {', '.join(SUBCOMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--checkpoint", "digits"], ["serve-bench", "http://127.0.0.1:9"]])
def test_a_missing_extra_is_named(command):
    program = "import sys; sys.modules['aiohttp'] = None; from owl3_jax.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: `owl3 {command[0]}` needs aiohttp: pip install 'owl3_jax[serve]'\n"


def test_it_passes_arguments_on(monkeypatch):
    module, given = importlib.import_module("owl3_jax.cli.convert"), []
    monkeypatch.setattr(module, "main", given.append)
    main(["convert", "--from", "a"])
    assert given == [["--from", "a"]]


def test_listing_them_imports_nothing_heavy():
    program = "import sys, owl3_jax.cli; owl3_jax.cli.main(['--help']); print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "tyro", "flax"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", [*(name for name in SUBCOMMANDS if name != "data"), "data check"])
def test_every_subcommand_has_its_own_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    assert f"usage: owl3 {name} [-h]" in " ".join(capsys.readouterr().out.split())


def test_a_pipe_that_is_closed_ends_it_quietly():
    command = f"{sys.executable} -m owl3_jax data check --help"
    read = subprocess.run(f"({command}; echo $? >&2) | true", shell=True, capture_output=True, text=True)
    assert "Traceback" not in read.stderr and "BrokenPipe" not in read.stderr
