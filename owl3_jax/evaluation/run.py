"""One evaluation: questions are asked, or answers that exist are taken; they are scored, and the scores shown."""

import dataclasses
import datetime as dt
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from owl3_jax.config import Json, JsonTree
from owl3_jax.evaluation.answering import Key, Spent
from owl3_jax.evaluation.asked import Asked
from owl3_jax.evaluation.contact_sheet import cards_of, draw_contact_sheet
from owl3_jax.evaluation.curves import save_figure
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.metrics import Metric, Scores, add_means
from owl3_jax.evaluation.question import READINGS, Answered
from owl3_jax.evaluation.report import Result, render_report
from owl3_jax.evaluation.samples import Sample, by_task, judged, write_samples
from owl3_jax.evaluation.tables import task_table
from owl3_jax.evaluation.task import Task
from owl3_jax.evaluation.tasks import Chosen
from owl3_jax.host.files import write_bytes, write_text
from owl3_jax.inference.results import Record

_NO_SCORES: Scores = {reading: {} for reading in READINGS}


class Run(NamedTuple):
    """What there is to score."""

    chosen: Chosen
    data: DataRoot
    samples: list[Sample]
    output: Path
    about: JsonTree  # what was asked and of whom, for report.json
    spent: Spent | None = None  # None: answers were taken from a file
    size: str | None = None  # of the model, in the paper's tables


def samples_of(asked: Sequence[Asked], records: Mapping[Key, Record]) -> list[Sample]:
    """The questions with the answers of an engine."""
    return [_sample(each, records[each.key]) for each in asked]


def samples_of_given(asked: Sequence[Asked], answers: Mapping[Key, str]) -> list[Sample]:
    """The questions with answers from anywhere; those without one count as wrong."""
    return [Sample(each.task.name, judged(each.task, each.question, answers.get(each.key)), [], None) for each in asked]


def rescored(samples: Sequence[Sample], tasks: Mapping[str, Task]) -> list[Sample]:
    """Samples of an earlier run, read again."""
    found = []
    for sample in samples:
        question, answer, _, error = sample.answered
        found.append(sample._replace(answered=judged(tasks[sample.task], question, None if error else answer, error)))
    return found


def finish(run: Run, judge: Callable[[Task, Answered], Answered] | None = None) -> list[Result]:
    """Scores all answers, writes the files of a run to its folder, prints the scores and the paths, and returns the results.

    scores.json: scores by task and reading; report.json: with intervals, and what the run was; samples.jsonl; report.html;
    the figures; the files for servers in the folder `submissions`.

    Args:
        run: what there is.
        judge: gives the score of answers to tasks that have a judge's prompt.
    """
    tasks = run.chosen.tasks
    samples = run.samples
    if judge:
        samples = [each._replace(answered=judge(tasks[each.task], each.answered)) for each in samples]
    answered = {name: [each.answered for each in part] for name, part in by_task(samples).items()}
    results = [_result(name, tasks[name], each, run.size, has_judge=judge is not None) for name, each in answered.items()]
    results += _of_benchmarks(run.chosen, results)
    figures = {
        file: figure
        for name, each in answered.items()
        if any(answer.question.gold is not None for answer in each)
        for file, figure in tasks[name].figures(each).items()
    }
    written = [write_samples(run.output, samples)]
    written.append(_write_json(run.output / "scores.json", {each.name: _numbers(each.scores) for each in results}))
    written.append(_write_json(run.output / "report.json", _report(run, results)))
    written += [save_figure(figure, run.output / name) for name, figure in figures.items()]
    written += list(_submissions(run.output / "submissions", tasks, answered))
    if cards := cards_of(samples, run.data, tasks, run.data.settings.samples_shown):
        written.append(save_figure(draw_contact_sheet(cards), run.output / "samples.png"))
    page = render_report(_title(run), results, samples, figures, run.data, tasks, list(_facts(run)))
    written.append(write_text(run.output / "report.html", page))
    _print(results, written, run.about.get("shard"))
    return results


def describe_run() -> JsonTree:
    """What differs between runs that score the same."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _sample(asked: Asked, record: Record) -> Sample:
    if "error" in record:
        return Sample(asked.task.name, judged(asked.task, asked.question, None, record["error"]), [], None)
    answer = record["answers"][0]
    return Sample(
        asked.task.name, judged(asked.task, asked.question, answer["text"]), record.get("frames", []), answer["tokens"]
    )


def _result(name: str, task: Task, answered: Sequence[Answered], size: str | None, *, has_judge: bool) -> Result:
    is_scored = any(each.question.gold is not None for each in answered) or (has_judge and task.judge_prompt is not None)
    scores = task.score(answered) if is_scored else _NO_SCORES
    return Result(name, task.about.title, len(answered), sum(bool(each.error) for each in answered), scores, task, size)


def _of_benchmarks(chosen: Chosen, results: Sequence[Result]) -> list[Result]:
    """The means over the tasks of a benchmark."""
    found = []
    for name, members in chosen.benchmarks.items():
        parts = [each for each in results if each.name in members and each.scores["official"]]
        if parts:
            scores = add_means({each.name: each.scores for each in parts})
            questions, failed = sum(each.questions for each in parts), sum(each.failed for each in parts)
            found.append(Result(name, f"mean of {', '.join(each.name for each in parts)}", questions, failed, scores))
    return found


def _numbers(scores: Scores) -> dict[str, dict[str, float]]:
    """Without intervals; rounded beyond what counts of any size can tell apart."""
    return {reading: {name: round(metric.value, 8) for name, metric in part.items()} for reading, part in scores.items()}


def _report(run: Run, results: Sequence[Result]) -> JsonTree:
    tasks = {
        each.name: {
            "title": each.title,
            "questions": each.questions,
            "failed": each.failed,
            "scores": {
                reading: {name: _metric(metric) for name, metric in part.items()} for reading, part in each.scores.items()
            },
        }
        for each in results
    }
    settings = dataclasses.asdict(run.data.settings)
    spent = {"spent": run.spent.to_json()} if run.spent else {}
    return {**run.about, "settings": settings, "tasks": tasks, **spent, "run": describe_run()}


def _metric(metric: Metric) -> JsonTree:
    return {
        "value": round(metric.value, 6),
        "interval_95": [round(metric.low, 6), round(metric.high, 6)],
        "units": metric.units,
    }


def _submissions(folder: Path, tasks: Mapping[str, Task], answered: Mapping[str, Sequence[Answered]]) -> list[Path]:
    return [
        write_bytes(folder / file, content)
        for name, each in answered.items()
        if (submission := tasks[name].submission)
        for file, content in submission(each).items()
    ]


def _write_json(path: Path, tree: JsonTree) -> Path:
    return write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def _title(run: Run) -> str:
    asked = run.about.get("checkpoint") or run.about.get("answers") or "earlier answers"
    return f"Evaluation of {asked}"


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = [(name, str(describe_run()[name])) for name in ("time", "device")]
    facts += [(name, str(value)) for name, value in run.about.items() if value not in (None, "")]
    if run.spent and run.spent.questions:
        spent = run.spent.to_json()
        facts.append(("asked now", f"{run.spent.questions} questions in {spent['seconds']} s"))
        facts.append(("rate", f"{spent['images_per_second']} images/s, {spent['tokens_per_second']} tokens/s"))
        facts.append(("time in", ", ".join(f"{name} {share:.0%}" for name, share in spent["shares"].items())))
    return facts


def _print(results: Sequence[Result], written: Sequence[Path], shard: Json) -> None:
    for each in results:
        if each.task is None:
            line = ", ".join(
                f"{name} {metric.value:.1f}" for name, metric in each.scores["official"].items() if "(" not in name
            )
            print(f"{each.name} ({each.title}): {line}\n")
        else:
            print(task_table(each.task, each.scores, each.questions, each.failed, size=each.size) + "\n")
    if shard:
        print(f"These are scores of the part {shard} of the questions; owl3 eval --rescore DIR DIR ... joins all parts.\n")
    print("\n".join(map(str, written)))
