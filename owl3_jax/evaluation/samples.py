"""samples.jsonl: one line for each question, with its answer and how it was read. `--rescore` and `owl3 compare` read it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from owl3_jax.config import JsonTree
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.task import Task
from owl3_jax.host.files import write_text

FILE = "samples.jsonl"
_JUDGED = ("official", "strict", "parsed", "strictly")
_OTHERS = ("task", "prompt", "answer", "error", "frames", "tokens", *_JUDGED)

WRONG = Judged(0.0, 0.0)  # a question without an answer


class SamplesError(ValueError):
    """A file of samples that cannot be read; the message names it."""


class Sample(NamedTuple):
    """A question of a task, with its answer."""

    task: str
    answered: Answered
    frames: list[list[int]]  # of each video
    tokens: int | None  # of the answer; None where it was given


def judged(task: Task, question: Question, answer: str | None, error: str = "") -> Answered:
    """A question with its answer as the task reads it; without one it counts as wrong."""
    if answer is None:
        return Answered(question, "", WRONG, error or "no answer")
    return Answered(question, answer, task.judge(question, answer))


def write_samples(folder: Path, samples: Iterable[Sample]) -> Path:
    """Writes samples.jsonl, in the order of the questions."""
    return write_text(folder / FILE, "".join(json.dumps(_record(each), ensure_ascii=False) + "\n" for each in samples))


def read_samples(folder: Path) -> list[Sample]:
    """The samples of a run. Raises SamplesError."""
    path = folder / FILE
    if not path.is_file():
        raise SamplesError(f"there is no {path}; give the --output of a finished evaluation")
    samples = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SamplesError(f"line {number} of {path} is not a sample: {error!r}") from error
    return samples


def _record(sample: Sample) -> JsonTree:
    question, answer, judged, error = sample.answered
    record: JsonTree = {"task": sample.task, **question.to_json()}
    record["prompt"] = record.pop("text")
    record |= {"frames": sample.frames} if sample.frames else {}
    record |= {"error": error} if error else {"answer": answer}
    record |= {"tokens": sample.tokens} if sample.tokens is not None else {}
    return record | judged._asdict()


def _sample(record: JsonTree) -> Sample:
    fields = {name: value for name, value in record.items() if name not in _OTHERS}
    question = Question.from_json({**fields, "text": record["prompt"]})
    judged = Judged(float(record["official"]), float(record["strict"]), str(record["parsed"]), str(record["strictly"]))
    if not isinstance(record.get("answer", ""), str) or not isinstance(question.facts, dict):
        raise ValueError("its answer must be a text, its facts an object")
    answered = Answered(question, record.get("answer", ""), judged, record.get("error", ""))
    return Sample(record["task"], answered, record.get("frames", []), record.get("tokens"))


def by_task(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each task, in their order."""
    tasks: dict[str, list[Sample]] = {}
    for sample in samples:
        tasks.setdefault(sample.task, []).append(sample)
    return tasks


def read_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8. Raises SamplesError."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SamplesError(f"cannot read {path}: {error}") from error
