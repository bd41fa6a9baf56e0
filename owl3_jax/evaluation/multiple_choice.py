"""What multiple-choice benchmarks have in common: how options are written, and which of them is right."""

from collections.abc import Mapping, Sequence
from typing import Any

from owl3_jax.evaluation import strict
from owl3_jax.evaluation.data_root import DataError
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.scores import LETTERS

# The released code has this apostrophe, which is other tokens than the one on keyboards.
LETTER = "Answer with the option\u2019s letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."


def lettered(options: Sequence[str]) -> str:
    """`A. cat`, `B. dog`, ... on lines of their own."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def letter_of(value: Any, options: Sequence[str], name: str) -> str:  # Any: JSON
    """The letter of the right option, given by its letter, its text, or its place from 0.

    Raises DataError, whose message calls the question `name`, when it is none of them.
    """
    letters = LETTERS[: len(options)]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(letters):
        return letters[value]
    if isinstance(value, str):
        text = value.strip()
        if value in options:
            return letters[list(options).index(value)]
        if len(text) == 1 and text in letters:
            return text
        if text.isdecimal() and int(text) < len(letters):
            return letters[int(text)]
    raise DataError(f"the right answer of {name} is {str(value)[:40]!r}, which is none of its options {list(options)}")


def judge_letters(question: Question, answer: str, official: str) -> Judged:
    """The letter that the official reading finds, against the one that a careful reader finds."""
    strictly = strict.choice(answer, question.options) or ""
    return Judged(float(official == question.gold), float(strictly == question.gold), official, strictly)


def first_character(answer: str) -> str:
    """The first character of an answer, `X` where it is empty."""
    return answer[:1] or "X"


def require(row: Mapping[str, Any], name: str, *columns: str) -> None:
    """Raises DataError when a row lacks one of the columns."""
    if missing := [column for column in columns if row.get(column) is None]:
        raise DataError(f"{name} has no {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row)) or 'nothing'}")
