"""VQAv2: open questions about COCO images. The validation set is scored here; answers to the test set go to EvalAI."""

import json
from collections.abc import Mapping, Sequence

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.official.vqa import evalai
from owl3_jax.evaluation.question import Answered, Judged, Question, unscored
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

_VAL = ("dataset/vqav2/vqav2_val.json", "dataset/vqav2/vqav2_val.jsonl")
_VAL_QUESTIONS = "dataset/vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
_VAL_ANNOTATIONS = "dataset/vqav2/v2_mscoco_val2014_annotations.json"
_TEST = ("dataset/vqav2/vqav2_test.json", "dataset/vqav2/vqav2_test.jsonl")
_TEST_QUESTIONS = "dataset/vqav2/v2_OpenEnded_mscoco_test*2015_questions.json"


def read_val(data: DataRoot) -> list[Question]:
    """The validation questions with their annotations."""
    rows = vqa_rows.rows_or_questions(data, _VAL, _VAL_QUESTIONS, "val2014/COCO_val2014_{:012d}.jpg")
    questions = [vqa_rows.vqa_question(row, task="vqav2_val") for row in rows]
    return vqa_rows.annotated(data, questions, _VAL_ANNOTATIONS)


def read_test(data: DataRoot) -> list[Question]:
    """The test questions."""
    rows = vqa_rows.rows_or_questions(data, _TEST, _TEST_QUESTIONS, "test2015/COCO_test2015_{:012d}.jpg")
    return [vqa_rows.vqa_question(row, task="vqav2_test") for row in rows]


def judge(question: Question, answer: str) -> Judged:
    """The released code normalises answers as EvalAI does; what it writes is scored by the VQA evaluator."""
    return vqa_rows.judge_soft(question, evalai(answer))


def submission(answered: Sequence[Answered]) -> Mapping[str, bytes]:
    """EvalAI's JSON."""
    rows = [{"question_id": _number(each.question.id), "answer": evalai(each.answer)} for each in answered]
    return {"vqav2_test.json": json.dumps(rows, ensure_ascii=False).encode()}


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


VQAV2_VAL = Task(
    "vqav2_val",
    About(
        "VQAv2, validation",
        (f"{' | '.join(_VAL)} | {_VAL_QUESTIONS}", _VAL_ANNOTATIONS),
        "visualqa.org; COCO val2014 images in images/mscoco/images/val2014",
        aliases=("vqav2",),
    ),
    read_val,
    judge,
    vqa_rows.score_soft,
    crop=True,
)
VQAV2_TEST = Task(
    "vqav2_test",
    About(
        "VQAv2, test (EvalAI)",
        (f"{' | '.join(_TEST)} | {_TEST_QUESTIONS}",),
        "StarBottle/mPLUG-Owl3-Evaluation or visualqa.org; COCO test2015 images in images/mscoco/images/test2015",
        "VQAv2",
        metric="",
    ),
    read_test,
    lambda question, answer: unscored(evalai(answer)),
    submission=submission,
    crop=True,
)
