"""LLaVA-NeXT-Interleave-Bench: the data sets outside the domain of its training, which the paper reports, and those inside.

Each row says in its metadata which data set it is of. The type of the first row decides how all of a data set are scored.
"""

import functools
import sys
from collections.abc import Sequence

from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from owl3_jax.evaluation import strict
from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.metrics import Scores, accuracy
from owl3_jax.evaluation.multiple_choice import LETTER, require
from owl3_jax.evaluation.official.choices import is_interleave_match, trim
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.task import About, Task

_FOLDERS = ("dataset/LLaVA-NeXT-Interleave-Bench", "dataset/llava-next-interleave-bench", "LLaVA-NeXT-Interleave-Bench")
_OUT, _IN = "multi_image_out_domain.json", "multi_image_in_domain.json"
_ORDINALS = ("first", "second", "third", "fourth")
_DIRECTLY = "Answer with the option's letter from the given choices directly."  # in the data, with a keyboard's apostrophe
_SCIVERSE = f"\nPlease select the correct paired scientific diagram from four given images. {_DIRECTLY}"
_ROUGE_LETTERS = 512  # of an answer
_LETTERS = 8  # options that a letter can name


def read(data: DataRoot, file: str, wanted: Sequence[str] = ()) -> list[Question]:
    """The rows of the wanted data sets, which are given by the beginnings of their names; of all by default."""
    kinds: dict[str, str] = {}
    questions = []
    for number, row in enumerate(data.rows(*(f"{folder}/{file}" for folder in _FOLDERS))):
        name = f"row {number} of {file}"
        _check(row, name)
        dataset, kind = str(row["metadata"]["dataset"]), str(row["metadata"].get("question_type", ""))
        kind = kinds.setdefault(dataset, kind)
        if kind not in ("multi-choice", "open-ended"):
            raise DataError(f"{name}: {dataset} has the question type {kind!r}; it must be multi-choice or open-ended")
        if not wanted or dataset.lower().startswith(tuple(wanted)):
            questions.append(_question(row, str(row.get("sample_id", number)), dataset, kind, name))
    if not questions:
        raise DataError(f"no row of {file} is of {' or '.join(wanted)}")
    return questions


def judge(question: Question, answer: str) -> Judged:
    """Whether the whole answer is the right one; of open-ended ones, Rouge-L. Strictly, the letter of an option is found."""
    gold = question.gold or ""
    if question.facts["type"] == "open-ended":
        return Judged(rouge_official(answer, gold), rouge_l(answer, gold), answer[:_ROUGE_LETTERS], answer)
    right = is_interleave_match(answer, gold)
    letter = strict.letter(gold, _LETTERS)
    found = (strict.letter(answer, _LETTERS) or "") if letter else trim(answer)
    return Judged(float(right), float(bool(found) and found == (letter or trim(gold))), trim(trim(answer)), found)


def score(answered: Sequence[Answered]) -> Scores:
    """`accuracy`; open-ended questions without a right answer are left out."""
    scored = [each for each in answered if each.question.gold or each.question.facts["type"] != "open-ended"]
    if not scored:
        raise DataError("no question has a right answer")
    return accuracy(scored)


def rouge_official(answer: str, gold: str) -> float:
    """Rouge-L's F of the package `rouge`, which the released code calls: the answer's first 512 characters; 0 if empty."""
    said = answer[:_ROUGE_LETTERS]
    if not said.strip(" .\n\t") or not gold.strip(" ."):
        return 0.0
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2 * (len(said) + len(gold)))  # the package recurs once for each word
    try:
        return float(Rouge(metrics=["rouge-l"]).get_scores(said, gold)[0]["rouge-l"]["f"])
    finally:
        sys.setrecursionlimit(before)


def rouge_l(answer: str, gold: str) -> float:
    """Rouge-L's F of the package `rouge-score`: of lower-case words without punctuation."""
    return float(_scorer().score(gold, answer)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"])


def _check(row: Row, name: str) -> None:
    require(row, name, "image", "conversations", "metadata")
    turns = row["conversations"]
    is_talk = isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, dict) and "value" in turn for turn in turns)
    if not is_talk or not isinstance(row["image"], list):
        raise DataError(f"{name} needs a list of images, and a conversation of a question and an answer: {str(row)[:80]}")
    require(row["metadata"], f"the metadata of {name}", "dataset")


def _question(row: Row, name: str, dataset: str, kind: str, place: str) -> Question:
    asked, gold = str(row["conversations"][0]["value"]), str(row["conversations"][1]["value"])
    images = tuple(f"{str(row['#']).rpartition('/')[0]}/eval_images_fix/{image}" for image in row["image"])
    parts = asked.split("<image>")
    if dataset.startswith("BLINK") and len(parts) - 1 > len(_ORDINALS):
        raise DataError(f"{place}: a question of BLINK can have {len(_ORDINALS)} images, this has {len(parts) - 1}")
    text = parts[0]
    for number, part in enumerate(parts[1:]):
        prefix = f"the {_ORDINALS[number]} image" if dataset.startswith("BLINK") else f"Image {number + 1}"
        text += f"{prefix}: <|image|> {part}"
    if dataset.startswith("SciVerse"):
        text = text.replace(_DIRECTLY, _SCIVERSE)
    elif row["metadata"].get("question_type") == "multi-choice" and not dataset.startswith(("Mantis", "MathVerse")):
        text += f"\n{LETTER}"
    facts = {"type": kind, "dataset": dataset}
    return Question(name, text, gold, images, split=dataset, facts=facts)


def _make_task(name: str, title: str, file: str, wanted: Sequence[str], paper: str, aliases: tuple[str, ...] = ()) -> Task:
    about = About(
        title,
        (" | ".join(f"{folder}/{file}" for folder in _FOLDERS),),
        "lmms-lab/LLaVA-NeXT-Interleave-Bench on the Hugging Face hub, images in its folder eval_images_fix",
        paper,
        aliases=aliases,
    )
    return Task(name, about, lambda data: read(data, file, wanted), judge, score)


OUT_DOMAIN = (
    _make_task("mantis_eval", "Mantis-Eval", _OUT, ("mantis",), "Mantis", ("mantis",)),
    _make_task("mathverse_mv", "MathVerse-mv", _OUT, ("mathverse",), "MathVerse-mv", ("mathverse",)),
    _make_task("sciverse_mv", "SciVerse-mv", _OUT, ("sciverse",), "SciVerse-mv", ("sciverse",)),
    _make_task("blink", "BLINK", _OUT, ("blink",), "BLINK"),
)
IN_DOMAIN = _make_task(
    "llava_interleave_bench_in_domain", "LLaVA-Interleave, in domain", _IN, (), "", ("in_domain", "llava_interleave_in_domain")
)
