"""Which kind of checkpoint a directory is, and the architecture that it holds."""

import json
import re
import stat
from pathlib import Path

from owl3_jax.config import ModelConfig
from owl3_jax.formats.bundled import BUNDLED
from owl3_jax.formats.config_json import CONFIG, read_config_json
from owl3_jax.formats.converted import is_converted, read_model
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.weight_files import has_weights
from owl3_jax.formats.workdir import is_workdir, last_checkpoint, read_run_model

_ADAPTER = "adapter_config.json"
_HUB_ID = re.compile(r"(?:(?:https?|hf):/+(?:huggingface\.co/)?)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/tree/.*)?")
_KINDS = (
    "no config.json (of an official checkpoint), no model.json with params/ (of a converted one) "
    "and no checkpoints/ (of a training run: train first)"
)


def is_stored(directory: Path) -> bool:
    """Whether the parameters are in orbax's format: a converted directory or a training run's workdir."""
    return is_workdir(directory) or is_converted(directory)


def describes_model(directory: Path) -> bool:
    """Whether a directory says what its model is, so that `load_config` can be asked."""
    return is_stored(directory) or (directory / CONFIG).exists()


def load_config(directory: Path) -> ModelConfig:
    """The architecture of a checkpoint directory of any kind; of a training run it is that of the last checkpoint.

    Raises CheckpointError when the directory is not a checkpoint, or the description of its model is missing or damaged.
    """
    check_path(directory)
    if is_workdir(directory):
        return read_run_model(last_checkpoint(directory))
    if is_converted(directory):
        return read_model(directory)[0]
    if not (directory / CONFIG).exists():
        raise CheckpointError(directory, [f"it has {_KINDS}"])
    return read_config_json(directory)


def check_path(path: Path) -> None:
    """Raises CheckpointError for a path that cannot be a checkpoint's, with the one to give instead where it can be told.

    That is a file, the id of a hub repository or anything else that does not exist, the cache of such a repository, an
    adapter without its model, or an empty directory.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: it holds a NUL
        raise CheckpointError(_shortened(path), [_where_to_get(str(path))]) from None
    if not stat.S_ISDIR(mode):
        raise CheckpointError(path, [f"it is a file; give the directory of the checkpoint, such as {path.parent}"])
    if describes_model(path) and (is_stored(path) or has_weights(path)):
        return
    if (path / _ADAPTER).exists() and not has_weights(path):
        raise CheckpointError(path, [_adapter(path)])
    if _is_cache(path):
        raise CheckpointError(path, [_snapshot_to_give(path)])
    if not any(path.iterdir()):
        raise CheckpointError(path, [f"it is empty: {_KINDS}"])


def _where_to_get(path: str) -> str:
    """What to do about a path that cannot be opened."""
    hub_id = _HUB_ID.fullmatch(path)
    if hub_id:
        return (
            f"no such directory; hub ids are not fetched: download with huggingface-cli download {hub_id[1]} --local-dir DIR, "
            "and give DIR"
        )
    return f"no such directory, nor the name of a checkpoint that ships with the package ({', '.join(BUNDLED)})"


def _shortened(path: Path, most: int = 300) -> Path:
    text = str(path)
    return path if len(text) <= most else Path(f"{text[: most // 2]}...{text[-most // 2 :]}")


def _is_cache(directory: Path) -> bool:
    """Whether this is (or holds, or is within) what the hub's tools keep: models--ORG--NAME/snapshots/HASH."""
    return directory.name == "snapshots" or (directory / "snapshots").is_dir() or any(directory.glob("models--*/snapshots"))


def _snapshot_to_give(directory: Path) -> str:
    repositories = [directory.parent] if directory.name == "snapshots" else [directory, *sorted(directory.glob("models--*"))]
    snapshots = [snapshot for repository in repositories for snapshot in _snapshots(repository)]
    if not snapshots:
        return "it is the cache of a hub repository, and none of its snapshots has a config.json; download the checkpoint again"
    return f"it is the cache of a hub repository; give a snapshot: {' or '.join(map(str, snapshots[:5]))}"


def _snapshots(repository: Path) -> list[Path]:
    """The snapshot that `main` names, if it is there; else all of them."""
    found = [config.parent for config in sorted(repository.glob(f"snapshots/*/{CONFIG}"))]
    reference = repository / "refs" / "main"
    main = reference.read_text(errors="replace").strip() if reference.is_file() else ""
    return [snapshot for snapshot in found if snapshot.name == main] or found


def _adapter(directory: Path) -> str:
    try:
        base = json.loads((directory / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    named = f" ({_ADAPTER} names {base[:200]})" if isinstance(base, str) else ""
    return f"a PEFT adapter; give the base model's directory{named}, and this one as the adapter (--adapter)"
