"""The benchmarks that `--tasks` can name. A new one is a file here, and its task in `TASKS`."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from owl3_jax.config import ConfigError
from owl3_jax.evaluation.paper import TABLES
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.task import Task
from owl3_jax.evaluation.tasks import distractor_resistance, needles, own_file
from owl3_jax.evaluation.tasks.ai2d import AI2D
from owl3_jax.evaluation.tasks.digits_distractors import DIGITS_DISTRACTORS
from owl3_jax.evaluation.tasks.digits_exact import DIGITS_EXACT
from owl3_jax.evaluation.tasks.gqa import GQA
from owl3_jax.evaluation.tasks.interleave import IN_DOMAIN, OUT_DOMAIN
from owl3_jax.evaluation.tasks.longvideobench import LONGVIDEOBENCH
from owl3_jax.evaluation.tasks.mi_bench import MI_BENCH
from owl3_jax.evaluation.tasks.mlvu import MLVU
from owl3_jax.evaluation.tasks.mmbench import MMBENCH
from owl3_jax.evaluation.tasks.mmvet import MMVET
from owl3_jax.evaluation.tasks.mvbench import MVBENCH
from owl3_jax.evaluation.tasks.nextqa import NEXTQA
from owl3_jax.evaluation.tasks.nlvr2 import NLVR2
from owl3_jax.evaluation.tasks.okvqa import OKVQA
from owl3_jax.evaluation.tasks.pope import POPE
from owl3_jax.evaluation.tasks.qbench2 import QBENCH2
from owl3_jax.evaluation.tasks.textvqa import TEXTVQA
from owl3_jax.evaluation.tasks.videomme import VIDEOMME, VIDEOMME_SUBTITLES
from owl3_jax.evaluation.tasks.vizwiz import VIZWIZ_TEST, VIZWIZ_VAL
from owl3_jax.evaluation.tasks.vqav2 import VQAV2_TEST, VQAV2_VAL

_LISTED = (
    VQAV2_VAL, VQAV2_TEST, OKVQA, GQA, VIZWIZ_VAL, VIZWIZ_TEST, TEXTVQA, *POPE, *MMBENCH, MMVET, AI2D,
    NEXTQA, MVBENCH, VIDEOMME, VIDEOMME_SUBTITLES, LONGVIDEOBENCH, MLVU,
    NLVR2, QBENCH2, *OUT_DOMAIN, IN_DOMAIN, MI_BENCH,
    distractor_resistance.on_benchmark(MMBENCH[0], distractor_resistance.NAME),
    DIGITS_EXACT, DIGITS_DISTRACTORS,
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _LISTED}

# Several tasks that are one benchmark: asked together, they also get the means of their scores under its name.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "pope": tuple(task.name for task in POPE),
    "llava_interleave_bench_out_domain": tuple(task.name for task in OUT_DOMAIN),
}
_BENCHMARK_ALIASES = {
    **dict.fromkeys(("out_domain", "llava_interleave", "llava_interleave_out_domain"), "llava_interleave_bench_out_domain"),
    "pope_full": "pope",
}
# What each group of the paper's tables asks.
GROUPS: dict[str, tuple[str, ...]] = {
    **{
        table: tuple(task.name for task in _LISTED if task.about.paper in columns or (table == "paper-single" and task in POPE))
        for table, columns in TABLES.items()
    },
    "all": tuple(TASKS),
}
_PATTERN = frozenset("*?[")


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The tasks of a run, by the names that their scores get."""

    tasks: dict[str, Task]
    benchmarks: dict[str, tuple[str, ...]]  # by the name that was given, its tasks


def choose(names: Iterable[str], frames: Sequence[int] = ()) -> Chosen:
    """The tasks that names, patterns and groups mean.

    A task keeps the name by which it was given. With several numbers of `frames`, tasks on videos are asked with each of
    them, as `NAME@FRAMES`.

    Raises ConfigError for a name that means nothing, with the nearest ones.
    """
    tasks: dict[str, Task] = {}
    benchmarks: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(names):
        members = members_of(name)
        if members:
            benchmarks[name] = members
        for given in members or (_matching(name) if _PATTERN & set(name) else GROUPS.get(name, (name,))):
            task = find_task(given)
            same = [name for name, other in tasks.items() if (other.name, other.frames) == (task.name, task.frames)]
            if same and same != [given]:
                raise ConfigError(f"{given} and {same[0]} are the same task")
            tasks[given] = task
    for name, members in BENCHMARKS.items():
        if set(members) <= set(tasks) and members not in benchmarks.values():
            benchmarks[name] = members
    if frames:
        tasks = {
            name: with_frames(task, count, frames)
            for given, task in tasks.items()
            for name, count in ([(given, 0)] if task.frames is None else _names(given, frames))
        }
    return Chosen({name: dataclasses.replace(task, name=name) for name, task in tasks.items()}, benchmarks)


def find_task(name: str) -> Task:
    """The task of a name or alias, also with a number of frames, as `mvbench@8`. Raises ConfigError, with the nearest names."""
    if name.startswith(own_file.PREFIX):
        return own_file.make_task(name)
    if name.startswith(needles.PREFIX):
        return needles.make_task(name)
    if name.startswith(f"{distractor_resistance.NAME}:"):
        return distractor_resistance.on_benchmark(find_task(name.partition(":")[2]), name)
    base, at, count = name.rpartition("@")
    if at and count.isdecimal() and int(count) > 0:
        return with_frames(find_task(base), int(count), ())
    aliases = {alias: task for task in _LISTED for alias in task.about.aliases}
    found = TASKS.get(name) or aliases.get(name)
    if found is None:
        known = [*TASKS, *aliases, *GROUPS, *BENCHMARKS]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"unknown task {name!r}; {hint}--tasks list shows all")
    return found


def members_of(name: str) -> tuple[str, ...]:
    """The tasks of a benchmark that consists of several; none for other names."""
    return BENCHMARKS.get(_BENCHMARK_ALIASES.get(name, name), ())


def with_frames(task: Task, count: int, shared: Sequence[int]) -> Task:
    """The task with `count` frames of each video; of several numbers, all take theirs from the frames of the largest."""
    if task.frames is None:
        return task
    share = tuple(sorted(shared)) if len(shared) > 1 else ()

    def changed(question: Question) -> Question:
        videos = tuple(video._replace(frames=count, share=share) for video in question.videos)
        return dataclasses.replace(question, videos=videos)

    return dataclasses.replace(task, questions=lambda data: list(map(changed, task.questions(data))), frames=count)


def _names(name: str, frames: Sequence[int]) -> list[tuple[str, int]]:
    """The names of a task with each number of frames."""
    if len(frames) == 1:
        return [(name, frames[0])]
    return [(f"{name}@{count}", count) for count in sorted(set(frames))]


def _matching(pattern: str) -> list[str]:
    found = fnmatch.filter(TASKS, pattern)
    if not found:
        raise ConfigError(f"no task matches {pattern!r}; --tasks list shows all")
    return found
