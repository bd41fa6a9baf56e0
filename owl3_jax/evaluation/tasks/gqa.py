"""GQA: compositional questions. The released code has two scores and does not say which of them the paper reports."""

from collections.abc import Sequence

from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.metrics import Scores, accuracy, mean_metric
from owl3_jax.evaluation.official.vqa import evalai, gqa
from owl3_jax.evaluation.question import READINGS, Answered, Judged, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

_ROWS = (
    "dataset/gqa/testdev_balanced.jsonl",
    "dataset/gqa/gqa_testdev_balanced.jsonl",
    "dataset/gqa/gqa_testdev.jsonl",
    "dataset/gqa/testdev_balanced.json",
)


def read(data: DataRoot) -> list[Question]:
    """The balanced questions of testdev."""
    questions = []
    for row in data.rows(*_ROWS):
        golds = row.get("answer")
        if golds is None or golds == []:
            raise DataError(f"a row of GQA has no answer: {str(dict(row))[:80]}")
        listed = [str(gold) for gold in (golds if isinstance(golds, list) else [golds])]
        placed = {**row, "image": f"gqa/{row['image']}"} if "image" in row else row
        questions.append(vqa_rows.vqa_question(placed, task="gqa", gold=listed[0], facts={"golds": listed}))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """The first score; strictly, whole words are compared, and an empty answer is not right."""
    golds = {gold.strip().lower() for gold in question.facts["golds"]}
    parsed, strictly = gqa(answer).strip().lower(), evalai(answer)
    return Judged(
        float(parsed in golds), float(bool(strictly) and strictly in {evalai(gold) for gold in golds}), parsed, strictly
    )


def score(answered: Sequence[Answered]) -> Scores:
    """`accuracy`, and `evalai_accuracy`: the answer as EvalAI normalises it."""
    scores = accuracy(answered)
    for reading in READINGS:
        scores[reading]["evalai_accuracy"] = mean_metric([_evalai_share(each, reading == "strict") for each in answered])
    return scores


def _evalai_share(each: Answered, needs_words: bool) -> float:
    if each.error:
        return 0.0
    found = evalai(each.answer).strip().lower()
    golds = {gold.strip().lower() for gold in each.question.facts["golds"]}
    return float(found in golds and bool(found or not needs_words))


GQA = Task(
    "gqa",
    About(
        "GQA, testdev balanced",
        (" | ".join(_ROWS),),
        "StarBottle/mPLUG-Owl3-Evaluation; images from Stanford GQA in images/gqa/images",
        "GQA",
        aliases=("gqa_testdev",),
    ),
    read,
    judge,
    score,
    crop=True,
)
