"""MI-Bench: multiple choice about several images. Each question is asked once for every rotation of its options."""

from collections.abc import Sequence

from owl3_jax.config import Json
from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.metrics import Scores, accuracy, by_split, group_shares, mean_metric
from owl3_jax.evaluation.multiple_choice import (
    LETTER,
    first_character,
    judge_letters,
    letter_of,
    lettered,
    option_texts,
    require,
)
from owl3_jax.evaluation.question import READINGS, Answered, Judged, Question, distinct
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task

_FOLDERS = ("mi_bench",)
_NAMES = ("multi_image_instruction", "multimodal_knowledge_seeking")


def read(data: DataRoot) -> list[Question]:
    """Both files, with the rotations of each question: by r places to the left under the id `ITEM/r`."""
    rows = [(stem, number, row) for stem in _NAMES for number, row in enumerate(_rows(data, stem))]
    names = distinct([_name(stem, number, row) for stem, number, row in rows])
    return [question for name, (_, _, row) in zip(names, rows, strict=True) for question in _rotations(data, name, row)]


def judge(question: Question, answer: str) -> Judged:
    """The first character, in either case."""
    return judge_letters(question, answer, first_character(answer).upper())


def score(answered: Sequence[Answered]) -> Scores:
    """`accuracy`: a question counts when all of its rotations are right, as released; `plain_accuracy` over rotations."""
    plain = accuracy(answered)
    scores: Scores = {}
    for reading in READINGS:
        scores[reading] = {
            "accuracy": mean_metric(group_shares(answered, reading)),
            "plain_accuracy": plain[reading]["accuracy"],
        }
        for split, part in by_split(answered).items():
            scores[reading][f"accuracy ({split})"] = mean_metric(group_shares(part, reading))
    return scores


def _rows(data: DataRoot, stem: str) -> list[Row]:
    folders = data.folders(*_FOLDERS) or ["dataset/mi_bench"]
    return data.rows(*(f"{folder}/{stem}{suffix}" for suffix in (".json", ".jsonl") for folder in folders))


def _name(stem: str, number: int, row: Row) -> str:
    return str(row.get("id", row.get("question_id", f"{stem}/{number}")))


def _rotations(data: DataRoot, name: str, row: Row) -> list[Question]:
    place = f"question {name} of MI-Bench"
    require(row, place, "question", "answer")
    options = _options(row, place)
    right = LETTERS.index(letter_of(row["answer"], options, place, ("letter", "text", "place")))
    images = tuple(data.media({"#": row["#"], "image": image}, "image") for image in _images(row, place))
    split = str(row.get("task") or row.get("task_name") or row.get("type") or "")
    asked = str(row["question"]).replace("<image>", "<|image|>")
    questions = []
    for rotation in range(len(options)):
        turned = (*options[rotation:], *options[:rotation])
        gold = LETTERS[(right - rotation) % len(options)]
        text = f"{asked}\nOptions: {lettered(turned)}\n{LETTER}"
        questions.append(Question(f"{name}/{rotation}", text, gold, images, options=turned, split=split, group=name))
    return questions


def _options(row: Row, place: str) -> tuple[str, ...]:
    options: Json = row.get("options", row.get("choices"))
    return option_texts(list(options.values()) if isinstance(options, dict) else options, place)


def _images(row: Row, place: str) -> list[str]:
    images = row.get("images", row.get("image"))
    if isinstance(images, str):
        return [images]
    if not isinstance(images, list):
        raise DataError(f"{place} has no list of images")
    return list(map(str, images))


MI_BENCH = Task(
    "mi_bench",
    About(
        "MI-Bench, in all rotations",
        tuple(f"dataset/mi_bench/{stem}.json" for stem in _NAMES),
        "StarBottle/MIBench on the Hugging Face hub, in dataset/mi_bench",
        aliases=("mibench",),
    ),
    read,
    judge,
    score,
)
