"""Scores a model on benchmarks, or answers that exist: `owl3 eval --checkpoint DIR --tasks nlvr2,mvbench --data_root DATA`."""

import dataclasses
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

import owl3_jax
from owl3_jax.cli.eval_list import list_ids, list_tasks
from owl3_jax.cli.model_flags import mesh_of
from owl3_jax.config import ComputeConfig, Config, ConfigError, DType, ModelConfig, field_differences, parse_dtype
from owl3_jax.evaluation.answer_file import answers_path
from owl3_jax.evaluation.answering import answer_questions
from owl3_jax.evaluation.asked import Selection, ask_all, parse_shard, select
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.given_answers import read_answers
from owl3_jax.evaluation.judge import Judge, JudgeError
from owl3_jax.evaluation.paper import SIZES
from owl3_jax.evaluation.question import Answered
from owl3_jax.evaluation.run import Run, finish, rescored, samples_of, samples_of_given
from owl3_jax.evaluation.samples import Sample, SamplesError, by_task, read_samples
from owl3_jax.evaluation.task import Task
from owl3_jax.evaluation.tasks import Chosen, choose
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.host import command_line
from owl3_jax.host.compilation_cache import use_compilation_cache
from owl3_jax.host.distributed import DistributedError, ProcessFlags, start_processes
from owl3_jax.host.files import unwritable
from owl3_jax.host.storage import is_url
from owl3_jax.inference.engine import Engine
from owl3_jax.inference.memory import FAILURES
from owl3_jax.processing.processor import Processor

_LIST = "list"
_HERE = "."


@dataclasses.dataclass(frozen=True)
class Flags:
    """Asks a model the questions of benchmarks, and scores its answers officially and strictly.

    The same command goes on where a stopped one ended. --answers scores answers that any model has given, --rescore those
    of an earlier run: neither needs a model.
    """

    # official, converted or training run's directory, or "digits"
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["--workdir"])] = None
    dtype: str = (
        "auto"  # dtype to compute in: bfloat16, float32; auto: the config file's, or the checkpoint's own (float32 on a CPU)
    )
    # names, patterns, files (file:PATH) or groups (paper-single, paper-multi, paper-video, all), separated by commas (one in
    # a path is \,); list shows them. By default the config's
    tasks: str | None = None
    data_root: str = _HERE  # where `dataset/` and `images/` of the benchmarks are, here or gs://
    output: Path | None = None  # folder for the results; by default `eval` in the checkpoint
    answers: Path | None = None  # JSON Lines of answers to score: {"task", "id", "answer"}
    rescore: tuple[Path, ...] = ()  # folders of runs, or of the shards of one, whose answers are scored again
    list_ids: str | None = None  # print the ids of this task's questions
    limit: int | None = None  # ask a seeded sample of so many questions of each task
    shard: str | None = None  # i/n: ask the part i of n; --rescore joins them
    frames: tuple[int, ...] = ()  # frames of each video; several: accuracy by number of frames, on shared features
    model_size: str | None = None  # compare with the paper's numbers of 1B, 2B, 7B-240728 or 7B-241101 alone
    judge_url: str | None = None  # OpenAI-compatible URL of a judge, for MM-Vet: http://localhost:8000/v1
    judge_model: str = ""  # the judge's name there
    distributed: ProcessFlags = dataclasses.field(default_factory=ProcessFlags)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")
        if self.model_size is not None and self.model_size not in SIZES:
            raise ConfigError(f"--model_size must be one of {', '.join(SIZES)}, got {self.model_size!r}")
        parse_shard(self.shard)
        if (self.judge_url is None) != (not self.judge_model):
            raise ConfigError("--judge_url and --judge_model are given together")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, by default the process's own, and evaluates. Exits with 1 after an error or a failed question."""
    config, flags = command_line.parse(Flags, argv, prog="owl3 eval", needs_config=False)
    try:
        failed = _evaluate(_with_flags(config, flags), flags)
    except (*FAILURES, DistributedError, JudgeError) as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed}")


def _evaluate(config: Config, flags: Flags) -> str:
    """Does what is asked; returns what was not scored."""
    data = DataRoot(flags.data_root, config.eval)
    if flags.tasks == _LIST:
        print(list_tasks(data))
    elif flags.list_ids:
        print(list_ids(flags.list_ids, data), end="")
    elif flags.answers:
        return _score_answers(config, flags, data)
    elif flags.rescore:
        _rescore(config, flags, data)
    else:
        return _ask(config, flags, data)
    return ""


def _with_flags(config: Config, flags: Flags) -> Config:
    given = re.split(r"(?<!\\),", flags.tasks or "")
    tasks = tuple(name.strip().replace("\\,", ",") for name in given if name.strip()) or config.eval.tasks
    settings = dataclasses.replace(config.eval, tasks=tasks, frames=flags.frames or config.eval.frames)
    return dataclasses.replace(config, eval=settings)


def _ask(config: Config, flags: Flags, data: DataRoot) -> str:
    if flags.checkpoint is None:
        raise ConfigError("give --checkpoint DIR; or --answers FILE, to score answers that exist; or --tasks list")
    checkpoint = find_checkpoint(flags.checkpoint)
    model = _model(config, checkpoint)
    is_bundled = checkpoint != flags.checkpoint
    output = _output(flags, Path("eval") if is_bundled else checkpoint / "eval")
    chosen = _choose(config)
    asked = ask_all(chosen.tasks.values(), data, _selection(flags, data))
    use_compilation_cache()
    with (
        start_processes(flags.distributed),
        tempfile.TemporaryDirectory(prefix="owl3-features-") as features,
    ):
        processor = Processor.from_pretrained(checkpoint)
        dtype = _dtype(config, flags)
        path = answers_path(output, checkpoint, model, str(dtype), processor)
        load = functools.partial(_load_engine, config, checkpoint, dtype, Path(features))
        records, spent = answer_questions(asked, data, path, model, processor, load)
    if jax.process_index() > 0:
        return ""
    samples = samples_of(asked, records)
    about = {"checkpoint": str(flags.checkpoint), **_about(flags)}
    finish(Run(chosen, data, samples, output, about, spent, flags.model_size), _judge(flags, output))
    return _failures(samples)


def _score_answers(config: Config, flags: Flags, data: DataRoot) -> str:
    assert flags.answers is not None
    output = _output(flags, None)
    if not config.eval.tasks:
        raise ConfigError("give --tasks: the tasks whose answers are scored")
    chosen = _choose(config)
    everything = ask_all(chosen.tasks.values(), data, Selection())
    answers, others = read_answers(flags.answers, chosen, {each.key for each in everything})
    if others:
        named = ", ".join(f"{count} of {task}" for task, count in others.most_common(5))
        print(f"{flags.answers} has answers to other tasks, which are left out: {named}", file=sys.stderr)
    asked = select(everything, _selection(flags, data))
    samples = samples_of_given(asked, answers)
    finish(Run(chosen, data, samples, output, _about(flags), None, flags.model_size), _judge(flags, output))
    return _failures(samples)


def _rescore(config: Config, flags: Flags, data: DataRoot) -> None:
    samples = [sample for folder in flags.rescore for sample in read_samples(folder)]
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        key = sample.task, sample.answered.question.id
        if key in seen:
            raise SamplesError(f"question {key[1]} of {key[0]} has two answers in {', '.join(map(str, flags.rescore))}")
        seen.add(key)
    names = [name for name in by_task(samples) if not config.eval.tasks or name in choose(config.eval.tasks).tasks]
    if not names:
        raise ConfigError(f"{', '.join(map(str, flags.rescore))} has no answer to the tasks {', '.join(config.eval.tasks)}")
    chosen = choose(names)
    output = _output(flags, flags.rescore[0] if len(flags.rescore) == 1 else None)
    kept: list[Sample] = rescored([sample for sample in samples if sample.task in chosen.tasks], chosen.tasks)
    before = _about_before(flags.rescore[0])
    if flags.data_root == _HERE and "data_root" in before:
        data = DataRoot(str(before["data_root"]), config.eval)
    about = {**_about(flags), **before, "rescored": ", ".join(map(str, flags.rescore))}
    judge = _judge(flags, output)
    if not judge and all("judge" in _about_before(folder) for folder in flags.rescore):
        judge = _as_before(samples)
    finish(Run(chosen, data, kept, output, about, None, flags.model_size), judge)


def _choose(config: Config) -> Chosen:
    if not config.eval.tasks:
        raise ConfigError("give --tasks; --tasks list shows all")
    return choose(config.eval.tasks, config.eval.frames)


def _selection(flags: Flags, data: DataRoot) -> Selection:
    return Selection(flags.limit, *parse_shard(flags.shard), seed=data.settings.seed)


def _output(flags: Flags, default: Path | None) -> Path:
    output = flags.output or default
    if output is None:
        raise ConfigError("give --output: a folder for the results")
    if output.is_file():
        raise ConfigError(f"--output {output} is a file: the results would go there; move it away")
    if problem := unwritable(output):
        raise ConfigError(f"--output {output}: {problem}")
    return output


def _about(flags: Flags) -> dict[str, object]:
    given = {
        "answers": flags.answers,
        "tasks": flags.tasks,
        "data_root": flags.data_root if is_url(flags.data_root) else str(Path(flags.data_root).absolute()),
        "limit": flags.limit,
        "shard": flags.shard,
        "judge": flags.judge_model or None,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def _about_before(folder: Path) -> dict[str, object]:
    """What an earlier run was, for the report of its answers; nothing where its report.json is gone."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: report[name] for name in ("checkpoint", "answers", "data_root", "limit", "judge") if name in report}


def _judge(flags: Flags, output: Path) -> Callable[[Task, Answered], Answered] | None:
    return Judge(flags.judge_url, flags.judge_model, output / "judged.jsonl").score if flags.judge_url else None


def _as_before(samples: Sequence[Sample]) -> Callable[[Task, Answered], Answered]:
    """What a judge said in an earlier run."""
    judged = {(each.task, each.answered.question.id): each.answered for each in samples}
    return lambda task, answered: judged[task.name, answered.question.id] if task.judge_prompt else answered


def _failures(samples: Sequence[Sample]) -> str:
    failed = [(sample.task, sample.answered) for sample in samples if sample.answered.error]
    if not failed:
        return ""
    named = "; ".join(f"{task} {each.question.id}: {each.error}" for task, each in failed[:3])
    more = "; ..." if len(failed) > 3 else ""
    return (
        f"{len(failed)} of {len(samples)} questions have no answer and count as wrong: {named}{more}. samples.jsonl and "
        "report.html list them; the same command asks only these again"
    )


def _model(config: Config, checkpoint: Path) -> ModelConfig:
    """The checkpoint's model. Raises ConfigError when a config file names another one."""
    model = load_config(checkpoint)
    is_given = config.model != ModelConfig() and not config.start.inherit
    if is_given and (differences := field_differences(model, config.model, "model")):
        raise ConfigError("\n  ".join([f"the model of {checkpoint} is not the config's:", *differences]))
    return model


def _dtype(config: Config, flags: Flags) -> DType | None:
    """What to compute in: the flag's, or that of a config file. None, the checkpoint's own, on accelerators; float32 on a CPU,
    where answers then do not depend on the batch, and bfloat16 is no faster."""
    given = parse_dtype(flags.dtype)
    if given or config.compute != ComputeConfig():
        return given or config.compute.dtype
    return "float32" if jax.default_backend() == "cpu" else None


def _load_engine(config: Config, checkpoint: Path, dtype: DType | None, features: Path) -> Engine:
    """The model of a checkpoint on the mesh of the config. Features of images that outgrow memory go to a folder."""
    settings = config.eval
    return owl3_jax.from_pretrained(
        checkpoint,
        mesh=mesh_of(config.mesh),
        dtype=dtype,
        vision_batch_size=settings.vision_batch_size,
        feature_cache_bytes=int(settings.feature_cache_gb * 1e9),
        feature_cache_folder=features,
    ).engine
