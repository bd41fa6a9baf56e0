"""Commands with subcommands: one module for each, imported when it is called, so that `--help` answers at once."""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

# Packages that only some commands need, and the extra that installs them.
_EXTRAS = {"aiohttp": "serve", "fastapi": "serve", "prometheus_client": "serve", "starlette": "serve", "uvicorn": "serve"}


def run_subcommand(
    command: str, about: str, subcommands: Mapping[str, str], modules: Mapping[str, str], arguments: Sequence[str]
) -> None:
    """Calls `main` of a subcommand's module with the arguments after its name.

    Without arguments it lists the subcommands. An unknown one exits with code 2, Ctrl-C with 130, a closed pipe with 141.
    A command that needs an extra says which.

    Args:
        command: what stands before the subcommand.
        about: one sentence about the command.
        subcommands: what each does, in one line.
        modules: each one's module.
        arguments: those after the command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(command, about, subcommands))
        return
    name, *rest = arguments
    if name not in subcommands:
        near = difflib.get_close_matches(name, subcommands, n=1)
        known = ", ".join(subcommands)
        hint = f"did you mean {near[0]!r}? {command} --help lists all" if near else f"known subcommands: {known}"
        print(f"error: unknown subcommand {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    try:
        importlib.import_module(modules[name]).main(rest)
    except ModuleNotFoundError as error:
        if (missing := (error.name or "").partition(".")[0]) not in _EXTRAS:
            raise
        sys.exit(f"error: `{command} {name}` needs {missing}: pip install 'owl3_jax[{_EXTRAS[missing]}]'")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # who read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        sys.exit(141)


def _help(command: str, about: str, subcommands: Mapping[str, str]) -> str:
    width = max(map(len, subcommands))
    lines = [f"  {name:<{width}}   {what}" for name, what in subcommands.items()]
    return "\n".join(
        [f"usage: {command} SUBCOMMAND ...", "", about, "", *lines, "", f"{command} SUBCOMMAND --help lists flags."]
    )
