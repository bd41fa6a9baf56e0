"""Tab completion of commands and paths, where Python has readline."""

from collections.abc import Collection, Sequence
from pathlib import Path


def use_completion(commands: Sequence[str], path_commands: Collection[str]) -> None:
    """Lets the tab key complete what `input` reads; does nothing without readline (Windows)."""
    try:
        import readline
    except ImportError:
        return

    def complete(line: str, index: int) -> str | None:
        found = completions(line, commands, path_commands)
        return found[index] if index < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")  # a path may contain spaces
    is_libedit = "libedit" in (readline.__doc__ or "")  # of macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def completions(line: str, commands: Sequence[str], path_commands: Collection[str]) -> list[str]:
    """Completions of `line`: a command, or one of `path_commands` with a path. Those that need more end in a space or slash."""
    command, blank, start = line.partition(" ")
    if not blank:
        names = [name for name in commands if line and name.startswith(line)]
        return [f"{name} " if name in path_commands else name for name in names]
    return [f"{command} {path}" for path in _paths(start)] if command in path_commands else []


def _paths(start: str) -> list[str]:
    """Paths that begin with `start`; hidden files only if it asks for them."""
    parent, slash, stem = start.rpartition("/")
    folder = Path(parent + slash).expanduser()
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [entry for entry in entries if entry.name.startswith(stem) and entry.name.startswith(".") == stem.startswith(".")]
    return sorted(f"{parent}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in found)
