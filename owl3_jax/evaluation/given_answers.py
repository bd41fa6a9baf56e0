"""Answers that any model has given: JSON Lines of `{"task", "id", "answer"}`."""

import json
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from owl3_jax.evaluation.answering import Key
from owl3_jax.evaluation.samples import SamplesError, read_lines
from owl3_jax.evaluation.tasks import Chosen, find_task, members_of


class Given(NamedTuple):
    """What a file has."""

    answers: dict[Key, str]  # stripped
    others: Counter[str]  # lines by their tasks, of tasks that were not asked for


def read_answers(path: Path, chosen: Chosen, known: AbstractSet[Key]) -> Given:
    """The answers of a file.

    A line's task may have any of the task's names, or that of a benchmark or a sweep one of whose tasks alone has such an id.

    Args:
        path: of the file.
        chosen: the tasks that are scored.
        known: their questions.

    Raises SamplesError, whose message names the line: it is not such an object, its question has an answer already, or may be
    of several tasks; or some questions are not known.
    """
    names = _names(chosen)
    given, unknown = Given({}, Counter()), []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"line {number} of {path}"
        called, question, answer = _parse(line, place)
        tasks = names.get(called, ()) or members_of(called)
        if not set(tasks) <= set(chosen.tasks) or not tasks:
            given.others[called] += 1
            continue
        owners = [task for task in tasks if (task, question) in known]
        if len(owners) > 1:
            raise SamplesError(f"{place}: question {question} of {called} is one of {' and '.join(owners)}: name the task")
        if not owners:
            unknown.append(f"{question!r} of {called}")
            continue
        key = owners[0], question
        if key in given.answers:
            raise SamplesError(f"{place} is the second answer to question {question} of {called}")
        given.answers[key] = answer
    if unknown:
        raise SamplesError(f"{path} answers {len(unknown)} questions that there are not: {', '.join(unknown[:3])}")
    return given


def _names(chosen: Chosen) -> Mapping[str, list[str]]:
    """What tasks may be called, with the names that their scores get."""
    names: dict[str, list[str]] = {}
    for name, task in chosen.tasks.items():
        for called in {find_task(name.partition("@")[0]).name, *task.about.aliases}:
            names.setdefault(called, []).append(name)
    return names | {name: [name] for name in chosen.tasks}


def _parse(line: str, place: str) -> tuple[str, str, str]:
    """Task, id and answer of a line."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SamplesError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(tree, dict) or not {"task", "id", "answer"} <= set(tree):
        raise SamplesError(f'{place} must be an object with "task", "id" and "answer": {line[:80]}')
    task, name, answer = tree["task"], tree["id"], tree["answer"]
    texts = isinstance(task, str) and isinstance(answer, str)
    if not texts or isinstance(name, bool) or not isinstance(name, str | int):
        raise SamplesError(f"{place}: task and answer must be texts, id a text or a whole number: {line[:80]}")
    return task, str(name), _without_surrogates(answer).strip()


def _without_surrogates(text: str) -> str:
    """The text, in which halves of surrogate pairs, which JSON can write but no file can hold, are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
