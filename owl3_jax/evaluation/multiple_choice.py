"""What multiple-choice benchmarks have in common: how options are written, and which of them is right."""

from collections.abc import Mapping, Sequence
from typing import Literal

from owl3_jax.config import Json
from owl3_jax.evaluation import strict
from owl3_jax.evaluation.data_root import DataError
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.scores import LETTERS

# The released code has this apostrophe, which is other tokens than the one on keyboards.
LETTER = "Answer with the option\u2019s letter from the given choices directly."
WORD = "Answer the question using a single word or phrase."


Way = Literal["letter", "text", "place"]


def lettered(options: Sequence[str]) -> str:
    """`A. cat`, `B. dog`, ... on lines of their own."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def option_texts(value: Json, name: str) -> tuple[str, ...]:
    """The options of a row, a list of at least two. Raises DataError, whose message calls the question `name`."""
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        raise DataError(f"{name}: its options must be a list of 2 to {len(LETTERS)} texts, got {str(value)[:60]!r}")
    return tuple(map(str, value))


def letter_of(value: Json, options: Sequence[str], name: str, ways: Sequence[Way]) -> str:
    """The letter of the right option.

    Args:
        value: what the data says: the option's letter, its text, or its place from 0.
        options: all options.
        name: of the question in messages.
        ways: in which the data may say it; the first that fits counts, since options may be letters or numbers themselves.

    Raises DataError when it is none of them, or an option without text.
    """
    letters = LETTERS[: len(options)]
    for way in ways:
        found = _place(value, options, letters, way)
        if found is not None:
            if not options[found].strip():
                raise DataError(f"the right option of {name}, {letters[found]}, has no text")
            return letters[found]
    raise DataError(f"the right answer of {name} is {str(value)[:40]!r}, which is none of its options {list(options)}")


def _place(value: Json, options: Sequence[str], letters: str, way: Way) -> int | None:
    if isinstance(value, bool):
        return None
    text = str(value).strip()
    if way == "place":
        return int(text) if text.isdecimal() and int(text) < len(options) else None
    if way == "letter":
        return letters.index(text) if len(text) == 1 and text in letters else None
    return list(options).index(str(value)) if str(value) in options else None


def judge_letters(question: Question, answer: str, official: str) -> Judged:
    """The letter that the official reading finds, against the one that a careful reader finds."""
    strictly = strict.choice(answer, question.options) or ""
    return Judged(float(official == question.gold), float(strictly == question.gold), official, strictly)


def first_character(answer: str) -> str:
    """The first character of an answer, `X` where it is empty."""
    return answer[:1] or "X"


def require(row: object, name: str, *columns: str) -> None:
    """Raises DataError when a row lacks one of the columns, or is none."""
    if not isinstance(row, Mapping):
        raise DataError(f"{name} is not an object: {str(row)[:60]}")
    if missing := [column for column in columns if row.get(column) is None]:
        raise DataError(f"{name} has no {', '.join(map(repr, missing))}; it has {', '.join(map(repr, row)) or 'nothing'}")
