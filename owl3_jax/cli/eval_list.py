"""What `owl3 eval --tasks list` and `--list_ids TASK` print."""

from owl3_jax.config import ConfigError
from owl3_jax.evaluation.asked import questions_of
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.tables import paper_numbers
from owl3_jax.evaluation.tasks import BENCHMARKS, GROUPS, TASKS, choose
from owl3_jax.host.storage import StorageError


def list_tasks(data: DataRoot) -> str:
    """Every task: what it needs and where to get it, whether its files are there, and the paper's numbers."""
    lines = [f"data root: {data.root}", ""]
    for task in TASKS.values():
        about = task.about
        missing = [need for need in about.needs if not _is_there(data, need)]
        state = "ready" if not missing else "files missing"
        lines.append(f"{task.name}  [{state}]  {about.title}")
        lines += [f"    also: {', '.join(about.aliases)}"] if about.aliases else []
        lines += [f"    missing: {need}" for need in missing[:3]]
        lines += [f"    and {len(missing) - 3} more"] if len(missing) > 3 else []
        lines += [f"    from: {about.source}"] if about.source else []
        if reported := paper_numbers(about.paper):
            lines.append(f"    paper: {', '.join(f'{size} {value:g}' for size, value in reported.items())}")
    lines += ["", "groups:"]
    lines += [f"  {name}: {', '.join(members)}" for name, members in (BENCHMARKS | GROUPS).items() if name != "all"]
    lines += [
        "  all",
        "",
        "file:PATH                    a JSON Lines file of your own",
        "distractor_resistance:TASK   Distractor Resistance on multiple choice about single images, file:PATH too",
        "needles:FOLDER               which of N photographs of the folder has a number on it?",
    ]
    return "\n".join(lines)


def list_ids(names: str, data: DataRoot) -> str:
    """The ids of a task's questions, one on each line. Raises ConfigError and DataError."""
    chosen = choose([names])
    if not chosen.tasks:
        raise ConfigError(f"{names} names no task")
    ids = [question.id for task in chosen.tasks.values() for question in questions_of(task, data)]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{names} is several tasks with the same ids: name one of {', '.join(chosen.tasks)}")
    return "".join(f"{name}\n" for name in ids)


def _is_there(data: DataRoot, need: str) -> bool:
    try:
        return any(data.find(pattern, *_respelt(data, pattern)) for pattern in need.split(" | "))
    except StorageError:
        return False


def _respelt(data: DataRoot, pattern: str) -> list[str]:
    """The pattern with the folders that its data set may also have."""
    match pattern.split("/", 2):
        case ["dataset", name, rest]:
            return [f"{folder}/{rest}" for folder in data.folders(name)]
    return []
