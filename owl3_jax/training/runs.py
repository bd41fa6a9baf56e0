"""Training runs as their workdirs describe them. Nothing here needs JAX.

config.json     the run's Config
metrics.jsonl   its reports, one JSON object a line
accounts.json   what each of the processes that ran it, one after the other, did with its time; older runs have none
checkpoints/    a folder for each step that was saved
"""

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from owl3_jax.config import JsonTree
from owl3_jax.formats.errors import CheckpointError
from owl3_jax.formats.json_files import JsonError, check, number, read_json_object, whole_number
from owl3_jax.formats.workdir import is_workdir, last_checkpoint

CONFIG, METRICS, ACCOUNTS = "config.json", "metrics.jsonl", "accounts.json"


class RunsError(ValueError):
    """A folder without runs, or a file of a run that cannot be read."""


class Curve(NamedTuple):
    """One number of a run over its steps."""

    steps: Int64[np.ndarray, " reports"]
    values: Float64[np.ndarray, " reports"]


class Life(NamedTuple):
    """What one process did for a run, between its start and its end. Times are Unix seconds."""

    began: float
    updated: float  # when this was last written
    first_step: int  # the step that it resumed from
    last_step: int
    ended: str | None  # why; None while it runs, and when it was killed
    seconds: Mapping[str, float]  # start, compile, step, data, save and evaluation
    doing: str = "step"  # one of these, when it was last written


class Run(NamedTuple):
    """What is known of a run."""

    name: str
    workdir: Path
    steps: int  # that it is to take
    curves: Mapping[str, Curve]  # by the names in metrics.jsonl
    lives: Sequence[Life]
    checkpoint: int | None  # step of the last complete one
    changed: float  # Unix seconds, when its reports were last written


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each once, in the order of the folders.

    Raises RunsError when a folder has none, and when a file of a run cannot be read.
    """
    workdirs = list(dict.fromkeys(workdir.resolve() for directory in directories for workdir in find_workdirs(directory)))
    return [read_run(workdir, name) for workdir, name in zip(workdirs, distinct_names(workdirs), strict=True)]


def find_workdirs(directory: Path) -> list[Path]:
    """The folder itself if it is the workdir of a run, otherwise the workdirs one and two levels below it.

    Raises RunsError when there is none.
    """
    if _has_run(directory):
        return [directory]
    files = [*directory.glob(f"*/{CONFIG}"), *directory.glob(f"*/*/{CONFIG}")]
    found = sorted((file.parent for file in files if _has_run(file.parent)), key=_natural)
    if not found:
        what = f"a {CONFIG} beside a {METRICS}, an {ACCOUNTS} or a folder checkpoints"
        where = "it and the two levels of folders below it were searched" if directory.is_dir() else "it is not a folder"
        raise RunsError(f"no training run in {directory}: {where}; a run has {what}, as owl3 train --workdir DIR makes it")
    return found


def _natural(path: Path) -> list[tuple[str, int]]:
    """What sorts run-2 before run-10."""
    return [(word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", str(path))]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Of each path the shortest end that no other one has. The paths are absolute, and differ."""
    return [_distinct_name(path, [other.parts for other in paths if other != path]) for path in paths]


def read_run(workdir: Path, name: str) -> Run:
    """The run in a workdir. Raises RunsError when a file cannot be read."""
    file = workdir / CONFIG
    try:
        steps = _total_steps(read_json_object(file))
        file = workdir / ACCOUNTS
        lives = _lives(read_json_object(file)) if file.exists() else []
    except JsonError as error:
        raise RunsError(f"{file}: {error}; if it is damaged, delete it: the next start of the run writes it") from error
    metrics = workdir / METRICS
    changed = (metrics if metrics.exists() else workdir / CONFIG).stat().st_mtime
    return Run(name, workdir, steps, read_curves(metrics), lives, _last_checkpoint(workdir), changed)


def read_curves(path: Path) -> dict[str, Curve]:
    """What a file of reports says, by name; nothing where it does not exist. An incomplete last line is left out.

    Raises RunsError, with the number of the line, for one that is not a report.
    """
    steps: dict[str, array[int]] = defaultdict(lambda: array("q"))
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    if not path.exists():
        return {}
    with path.open("rb") as lines:
        for place, line in enumerate(lines, 1):
            try:
                step, report = _parse_report(line)
            except JsonError as error:
                if not line.endswith(b"\n"):  # the process was killed in the middle of it, or is writing it
                    break
                raise RunsError(f"{path}, line {place}: {error}; if the file is damaged, delete this line") from error
            for name, value in report.items():
                steps[name].append(step)
                values[name].append(value)
    return {name: Curve(np.array(steps[name], np.int64), np.array(values[name], np.float64)) for name in values}


def _has_run(directory: Path) -> bool:
    """Whether this is a run's workdir. Other folders have a config.json too, such as official checkpoints."""
    reports = (directory / METRICS).exists() or (directory / ACCOUNTS).exists()
    return (directory / CONFIG).exists() and (reports or is_workdir(directory))


def _distinct_name(path: Path, others: Sequence[tuple[str, ...]]) -> str:
    for length in range(1, len(path.parts)):
        end = path.parts[-length:]
        if all(other[-length:] != end for other in others):
            return "/".join(end)
    return str(path)


def _last_checkpoint(workdir: Path) -> int | None:
    try:
        return int(last_checkpoint(workdir).name) if is_workdir(workdir) else None
    except CheckpointError:
        return None


def _parse_report(line: bytes) -> tuple[int, dict[str, float]]:
    try:
        report = json.loads(line)
    except ValueError as error:
        raise JsonError(f"it is not JSON: {error}") from error
    if not isinstance(report, dict):
        raise JsonError("it is no report: it must be an object, {...}")
    step = whole_number("step", report.pop("step", None))
    for name, value in report.items():
        if type(value) is not float:  # NaN is one
            report[name] = number(name, value)
    return step, report


def _total_steps(config: JsonTree) -> int:
    return whole_number("train.steps", _object("train", config.get("train")).get("steps"))


def _lives(accounts: JsonTree) -> list[Life]:
    lives = accounts.get("lives")
    if not isinstance(lives, list):
        raise JsonError("lives must be a list")
    return [_life(f"lives[{index}]", _object(f"lives[{index}]", life)) for index, life in enumerate(lives)]


def _life(key: str, life: JsonTree) -> Life:
    ended = life.get("ended")
    check(ended is None or isinstance(ended, str), f"{key}.ended", ended, "a text or null")
    seconds = _object(f"{key}.seconds", life.get("seconds"))
    return Life(
        began=number(f"{key}.began", life.get("began")),
        updated=number(f"{key}.updated", life.get("updated")),
        first_step=whole_number(f"{key}.first_step", life.get("first_step")),
        last_step=whole_number(f"{key}.last_step", life.get("last_step")),
        ended=ended,
        seconds={kind: number(f"{key}.seconds.{kind}", value) for kind, value in seconds.items()},
        doing=str(life.get("doing", "step")),
    )


def _object(key: str, value: object) -> JsonTree:
    if not isinstance(value, dict):
        raise JsonError(f"{key} must be an object, {{...}}")
    return value
