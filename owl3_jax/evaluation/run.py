"""One evaluation: the prompts of all tasks are answered, then scored, and the scores shown."""

import datetime as dt
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax

from owl3_jax.config import Config, JsonTree
from owl3_jax.evaluation import samples
from owl3_jax.evaluation.answering import Answers, answer_prompts
from owl3_jax.evaluation.report import write_results
from owl3_jax.evaluation.task import AnyTask, Scored, Summary
from owl3_jax.evaluation.tasks import make_tasks
from owl3_jax.formats.checkpoint import load_config
from owl3_jax.inference.engine import Engine
from owl3_jax.processing.processor import Processor


def evaluate(config: Config, workdir: Path, load_engine: Callable[[Processor], Engine]) -> None:
    """Scores a model, writes the results to `WORKDIR/eval`, and prints the scores and the paths of the files.

    Everything but the `run` block of report.json follows from the model and the settings alone. Answers are appended to a
    file as they come, from which a later call resumes. All processes of a run call this function; only the first reads and
    writes in `WORKDIR/eval`, and prints.

    Args:
        config: the settings; `config.model` is the model in `workdir`.
        workdir: a checkpoint directory of any kind, with its tokenizer.
        load_engine: loads the model of `workdir`; takes its processor. Not called when no prompt waits for an answer.

    Raises:
        ConfigError: the settings ask for what the data or the model does not have.
        CheckpointError: `workdir` is not a checkpoint.
        FileNotFoundError: it has no tokenizer.
        ValueError: its processor.json or the file of answers is damaged.
        FailedPrompts: some prompts could not be answered. The next call asks only these.
    """
    start = time.monotonic()
    load_config(workdir)  # raises CheckpointError, which says more about a wrong directory than a missing tokenizer does
    tasks, processor = make_tasks(config.eval), Processor.from_pretrained(workdir)
    answers = answer_prompts(config, workdir, tasks, processor, functools.partial(load_engine, processor))
    if jax.process_index() == 0:
        show(config, workdir / "eval", tasks, answers, start)


def show(config: Config, directory: Path, tasks: list[AnyTask], answers: Answers, start: float) -> None:
    """Prints and writes the scores of an evaluation that began at `start`, in seconds of `time.monotonic`."""
    summaries = [summarize(task, answers) for task in tasks]
    shown = samples.choose(tasks, answers, config.eval.samples_shown)
    print("\n\n".join(summary.table for summary in summaries))
    for path in write_results(directory, summaries, shown, config.eval, describe_run(time.monotonic() - start)):
        print(path)


def summarize(task: AnyTask, answers: Answers) -> Summary:
    """The scores of a task."""
    answered = ((prompt.question, answers[task.name, prompt.id]) for prompt in task.prompts())
    return task.summarize([Scored(question, answer, task.score(question, answer)) for question, answer in answered])


def describe_run(seconds: float) -> JsonTree:
    """What differs between runs that score the same."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
