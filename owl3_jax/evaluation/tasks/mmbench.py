"""MMBench: multiple choice in English and Chinese, of which the development sets are scored here.

Its file asks every question several times with its options rotated, under other indices; CircularEval counts a question when
all of them are right.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.metrics import Scores, accuracy, circular, group_shares, grouped, mean_metric
from owl3_jax.evaluation.multiple_choice import LETTER, judge_letters, letter_of, lettered, option_texts, require
from owl3_jax.evaluation.official.choices import mmbench
from owl3_jax.evaluation.question import READINGS, Answered, Judged, Question, unscored
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task

_NO_OPTION = ("", "nan", "NaN", "None")  # cells of options that a question does not have
_COLUMNS = ("index", "question", "prediction", "A", "B", "C", "D")  # of a submission


def files(split: str, language: str) -> tuple[str, ...]:
    """The released files, and the data set's own."""
    name = f"mmbench_{split}_{language}"
    own = f"MMBench_{split.upper()}_{language.upper()}"
    return tuple(
        f"dataset/mmbench/{stem}{suffix}"
        for suffix in (".tsv", ".jsonl")
        for stem in (f"{name}_20231003", name, own, f"{own}_V11", f"{name}_*")
    )


def read(data: DataRoot, split: str, language: str) -> list[Question]:
    """The questions of a set, as its file has them: circular copies are rows of their own."""
    rows = data.rows(*files(split, language))
    return [_question(data, row, f"row {number} of MMBench {split} {language}", split) for number, row in enumerate(rows)]


def judge(question: Question, answer: str) -> Judged:
    """A letter with a mark, or one that ends the answer; else an option that the answer contains, or is a part of."""
    return judge_letters(question, answer, mmbench(answer, question.options))


def score(answered: Sequence[Answered]) -> Scores:
    """`circular_accuracy` over questions, `accuracy` over rows; the former by ability, too."""
    scores = circular(answered)
    for reading in READINGS:
        for name, groups in grouped(_first_rows(answered), lambda each: each.question.facts.get("l2-category", "")).items():
            chosen = {each.question.group for each in groups}
            rows = [each for each in answered if each.question.group in chosen]
            scores[reading][f"circular_accuracy ({name})"] = mean_metric(group_shares(rows, reading))
    return scores


def submission(answered: Sequence[Answered], name: str) -> Mapping[str, bytes]:
    """The table for OpenCompass' server, which does the circular evaluation."""
    from openpyxl import Workbook  # takes long

    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(_COLUMNS)
    for each in answered:
        options = [*each.question.options, "", "", "", ""][:4]
        index = int(each.question.id) if each.question.id.isdecimal() else each.question.id
        values = (index, each.question.facts["question"], each.answer, *options)
        sheet.append([_cell(sheet, value) for value in values])
    content = io.BytesIO()
    book.save(content)
    return {f"{name}_submission.xlsx": content.getvalue()}


def _cell(sheet: Any, value: object) -> Any:  # Any: openpyxl has no types
    """A cell with a number, or with a text that is no formula and has no control characters."""
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    if not isinstance(value, str):
        return value
    cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
    cell.data_type = "s"
    return cell


def _question(data: DataRoot, row: Row, name: str, split: str) -> Question:
    require(row, name, "index", "question", "image", *(("answer",) if split == "dev" else ()))
    options = option_texts(row["choices"], name) if "choices" in row else _columns(row, name)
    hint = str(row.get("hint") or "")
    context = "N/A" if hint in _NO_OPTION else hint
    text = f"<|image|>Context: {context}\nQuestion: {row['question']}\nOptions: {lettered(options)}\n{LETTER}"
    facts = {"question": str(row["question"])} | ({} if hint in _NO_OPTION else {"hint": hint})
    if row.get("l2-category"):
        facts["l2-category"] = str(row["l2-category"])
    # In a tab-separated file, equal images have equal numbers.
    image = str(row["#"]) if isinstance(row["image"], int) else f"images/{row['image']}"
    return Question(
        str(row["index"]),
        text,
        letter_of(row["answer"], options, name, ("letter", "place")) if split == "dev" else None,
        (image,),
        options=options,
        group=hashlib.blake2b(f"{row['image']}\n{row['question']}".encode(), digest_size=8).hexdigest(),
        facts=facts,
    )


def _columns(row: Row, name: str) -> tuple[str, ...]:
    options = [str(row.get(letter, "")) for letter in LETTERS[:5]]
    while options and options[-1] in _NO_OPTION and LETTERS[len(options) - 1] != row.get("answer"):
        options.pop()
    if len(options) < 2:
        raise DataError(f"{name} has fewer than two options")
    return tuple(options)


def _first_rows(answered: Sequence[Answered]) -> list[Answered]:
    """The first row of each question, whose ability counts."""
    return list({each.question.group: each for each in reversed(answered)}.values())[::-1]


def _make_task(split: str, language: str) -> Task:
    name = f"mmbench_{split}_{language}"
    is_dev = split == "dev"
    reader: Callable[[DataRoot], list[Question]] = lambda data: read(data, split, language)
    about = About(
        f"MMBench {split} {language.upper()}" + ("" if is_dev else " (server)"),
        (" | ".join(files(split, language)),),
        "open-compass/MMBench (tsv, images inside) in dataset/mmbench",
        "" if is_dev else f"MMB-{language.upper()}",
        metric="circular_accuracy" if is_dev else "",
        aliases=(f"{name}_20231003", f"mmbench_{language}_{split}"),
    )
    if is_dev:
        return Task(name, about, reader, judge, score, crop=True)
    return Task(
        name,
        about,
        reader,
        lambda question, answer: unscored(mmbench(answer, question.options)),
        accuracy,
        submission=lambda answered: submission(answered, name),
        crop=True,
    )


MMBENCH = tuple(_make_task(split, language) for split in ("dev", "test") for language in ("en", "cn"))
