"""The command line of everything that runs a config: `--config FILE`, `--mesh PRESET`, `--config.a.b=value`, its own flags.

A config is a Python file with `get_config() -> Config`, or with `get_config(argument)`, which is given as `--config
PATH:ARGUMENT`. tyro builds the flags from the dataclasses themselves, so that `--help` shows every field with its comment and
its default in that file, a misspelt field is answered with the nearest right ones, and a mistyped value with the expected
type. All of these exit with code 2.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import tyro

from owl3_jax.config import Config, ConfigError, MeshConfig, SourceConfig
from owl3_jax.sharding import MESH_PRESETS, MeshPreset

Flags = TypeVar("Flags")

_CONFIG_HELP = (
    "Python file with get_config() -> Config, e.g. configs/digits.py. PATH:ARGUMENT calls get_config(ARGUMENT), e.g. "
    "configs/stage3.py:7b-240728. Configs are given by path and do not ship with the package"
)


def parse(
    flags_type: type[Flags], argv: Sequence[str] | None = None, *, prog: str | None = None, needs_config: bool = True
) -> tuple[Config, Flags]:
    """The config of a run, with its overrides, and the command's own flags.

    Args:
        flags_type: a dataclass; each field is a flag `--name`, its comment the help text, its docstring the command's.
        argv: the arguments, without the command's name; those of the process if None.
        prog: the command's name in its help; the script's by default.
        needs_config: whether `--config` has to be given; otherwise the default is `Config()`.

    A wrong command line, and a config that cannot work, prints what was wrong and exits with code 2.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        default = _with_mesh_preset(load_config(_given(argv, "--config")), _given(argv, "--mesh"))
    except ConfigError as error:
        exit_with_usage_error(error)

    no_config = tyro.MISSING if needs_config else None

    def assemble(
        *,
        config_file: Annotated[
            Path | None, tyro.conf.arg(name="config", metavar="PATH[:ARGUMENT]", help=_CONFIG_HELP)
        ] = no_config,
        flags: Annotated[flags_type, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff],
        mesh: Annotated[MeshPreset | None, tyro.conf.arg(help="named mesh, in place of the config's")] = None,
        # `--config.flag=False` for booleans, as for every other field
        config: Annotated[Config, tyro.conf.FlagConversionOff] = default,
    ) -> Any:  # Any: tyro looks for the value of a type variable here, and warns
        del config_file, mesh  # their values are the defaults of `config`
        return config, flags

    # Names are spelt as in the dataclasses.
    with _registry():
        try:
            return tyro.cli(assemble, args=argv, description=flags_type.__doc__, use_underscores=True, prog=prog)
        except ConfigError as error:  # of the command's own flags
            exit_with_usage_error(error)


def parse_source(text: str) -> SourceConfig:
    """`PATH` or `PATH:WEIGHT`. Raises ValueError (ConfigError) when the weight cannot be one."""
    path, colon, weight = text.rpartition(":")
    try:
        is_path = not (colon and path) or Path(text).exists()
        return SourceConfig(text) if is_path else SourceConfig(path, weight=float(weight))
    except ConfigError:
        raise
    except ValueError:  # the colon belongs to the path
        return SourceConfig(text)


def _registry() -> tyro.constructors.ConstructorRegistry:
    """tyro's, in which a source is one argument."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def source(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[SourceConfig] | None:
        if info.type is not SourceConfig:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH[:WEIGHT]",
            instance_from_str=lambda arguments: parse_source(arguments[0]),
            is_instance=lambda value: isinstance(value, SourceConfig),
            str_from_instance=lambda given: [given.path if given.weight is None else f"{given.path}:{given.weight:g}"],
        )

    return registry


def exit_with_usage_error(error: Exception) -> NoReturn:
    """Prints what was wrong with the command line and exits with code 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def load_config(name: Path | str | None) -> Config:
    """What `get_config()` of a Python file returns; the defaults without a name.

    Args:
        name: `PATH`, or `PATH:ARGUMENT` for `get_config(ARGUMENT)`. A file of the whole name comes first.

    Raises ConfigError when there is no such file or no such function, the function needs an argument and there is none, takes
    none and there is one, does not take this one, or it returns something other than a Config.
    """
    if name is None:
        return Config()
    path, arguments = _split(str(name))
    module = _load_module(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config() -> Config")
    _check_arguments(path, module.get_config, arguments)
    config = module.get_config(*arguments)
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} must return a Config, got {type(config).__name__}")
    return config


def _split(name: str) -> tuple[Path, tuple[str, ...]]:
    """The file, and the argument if there is one."""
    before, colon, argument = name.rpartition(":")
    if colon and not Path(name).exists() and (Path(before).exists() or before.endswith(".py")):
        return Path(before), (argument,)
    return Path(name), ()


def _load_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"no config file {path}: configs are given by path and do not ship with the package")
    spec = importlib.util.spec_from_file_location("run_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_arguments(path: Path, get_config: Callable[..., Config], arguments: tuple[str, ...]) -> None:
    """Raises ConfigError when `get_config` cannot be called with these. Its parameter may name the choices, as a `Literal`."""
    parameters = inspect.signature(get_config, eval_str=True).parameters.values()
    choices = [choice for parameter in parameters for choice in get_args(parameter.annotation)]
    one_of = f", one of {', '.join(map(str, choices))}" if choices else ""
    if arguments and not parameters:
        raise ConfigError(f"get_config() of {path} takes no argument, got {arguments[0]!r}: give --config {path}")
    if not arguments and any(parameter.default is parameter.empty for parameter in parameters):
        raise ConfigError(f"get_config() of {path} needs an argument{one_of}: give --config {path}:ARGUMENT")
    if arguments and choices and arguments[0] not in choices:
        raise ConfigError(f"get_config() of {path} does not know the argument {arguments[0]!r}; it takes{one_of[1:]}")


def _with_mesh_preset(config: Config, name: str | None) -> Config:
    presets: dict[str, MeshConfig] = dict(MESH_PRESETS.items())
    return dataclasses.replace(config, mesh=presets[name]) if name in presets else config  # tyro refuses other names


def _given(argv: list[str], flag: str) -> str | None:
    """The value of a flag that gives the defaults of others, and so is read before them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", nargs="?")
    value: str | None = parser.parse_known_args(argv)[0].value
    return value or None
