"""The command line of every script: `--config FILE`, `--mesh PRESET`, `--config.a.b=value` overrides, and its own flags.

A config is a Python file with `get_config() -> Config`. tyro builds the flags from the dataclasses themselves, so that
`--help` shows every field with its comment and its default in that file, a misspelt field is answered with the nearest
right ones, and a mistyped value with the expected type. All of these exit with code 2.
"""

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from owl3_jax.config import Config, ConfigError, MeshConfig
from owl3_jax.sharding import MESH_PRESETS, MeshPreset

Flags = TypeVar("Flags")


def parse(flags_type: type[Flags], argv: Sequence[str] | None = None) -> tuple[Config, Flags]:
    """The config of a run, with its overrides, and the script's own flags.

    Args:
        flags_type: a dataclass; each field is a flag `--name`, its comment the help text, its docstring the script's.
        argv: the arguments, without the script's name; those of the process if None.

    A wrong command line, and a config that cannot work, prints what was wrong and exits with code 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        default = _with_mesh_preset(load_config(_config_file(argv)), _given(argv, "--mesh"))
    except ConfigError as error:
        _exit_with_usage_error(error)

    def assemble(
        config_file: Annotated[Path, tyro.conf.arg(name="config", help="Python file with get_config() -> Config")],
        flags: Annotated[flags_type, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff],
        mesh: Annotated[MeshPreset | None, tyro.conf.arg(help="named mesh, in place of the config's")] = None,
        # `--config.flag=False` for booleans, as for every other field
        config: Annotated[Config, tyro.conf.FlagConversionOff] = default,
    ) -> Any:
        del config_file, mesh  # their values are the defaults of `config`
        return config, flags

    # Names are spelt as in the dataclasses.
    return tyro.cli(assemble, args=argv, description=flags_type.__doc__, use_underscores=True)


def load_config(path: Path | None) -> Config:
    """What `get_config()` of the Python file `path` returns; the defaults without a path.

    Raises ConfigError when there is no such file or no such function, or it returns something else.
    """
    if path is None:
        return Config()
    if not path.is_file():
        raise ConfigError(f"no config file {path}")
    spec = importlib.util.spec_from_file_location("run_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config() -> Config")
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} must return a Config, got {type(config).__name__}")
    return config


def _with_mesh_preset(config: Config, name: str | None) -> Config:
    presets: dict[str, MeshConfig] = dict(MESH_PRESETS.items())
    return dataclasses.replace(config, mesh=presets[name]) if name in presets else config  # tyro refuses other names


def _config_file(argv: list[str]) -> Path | None:
    name = _given(argv, "--config")
    return Path(name) if name else None


def _given(argv: list[str], flag: str) -> str | None:
    """The value of a flag that gives the defaults of others, and so is read before them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?")
    return parser.parse_known_args(argv)[0].value


def _exit_with_usage_error(error: ConfigError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
