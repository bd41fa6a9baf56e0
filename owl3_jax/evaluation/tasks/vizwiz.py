"""VizWiz: questions that blind people ask about their photographs. Answers to the test set go to EvalAI."""

import json
from collections.abc import Mapping, Sequence

from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.multiple_choice import WORD
from owl3_jax.evaluation.official.vqa import first_part
from owl3_jax.evaluation.question import Answered, Judged, Question, unscored
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

_INSTRUCTION = f"When the provided information is insufficient, respond with 'Unanswerable'. {WORD}"


def files(split: str) -> tuple[str, ...]:
    """The released rows, or the data set's own."""
    return (f"dataset/vizwiz/vizwiz_{split}.jsonl", f"dataset/vizwiz/vizwiz_{split}.json", f"dataset/vizwiz/{split}.json")


def read_test(data: DataRoot) -> list[Question]:
    """The test questions."""
    return [vqa_rows.vqa_question(row, task="vizwiz_test", instruction=_INSTRUCTION) for row in data.rows(*files("test"))]


def read_val(data: DataRoot) -> list[Question]:
    """The validation questions with ten answers each."""
    questions = []
    for row in data.rows(*files("val")):
        answers = row.get("answers", row.get("answer"))
        if not answers or isinstance(answers, str):
            raise DataError(f"a row of vizwiz_val has no answers: {str(dict(row))[:80]}")
        given = vqa_rows.with_numbers(answers)
        facts = {"annotations": given, **({"answer_type": row["answer_type"]} if row.get("answer_type") else {})}
        gold = vqa_rows.most_given(given)
        questions.append(vqa_rows.vqa_question(row, task="vizwiz_val", instruction=_INSTRUCTION, gold=gold, facts=facts))
    return questions


def parse(answer: str) -> str:
    """What the released code writes for the server."""
    return first_part(answer, ".,").strip()


def judge(question: Question, answer: str) -> Judged:
    """The VQA evaluator's soft accuracy of what the server would get."""
    return vqa_rows.judge_soft(question, parse(answer))


def submission(answered: Sequence[Answered]) -> Mapping[str, bytes]:
    """EvalAI's JSON."""
    rows = [{"image": each.question.id, "answer": parse(each.answer)} for each in answered]
    return {"vizwiz_test.json": json.dumps(rows, ensure_ascii=False).encode()}


VIZWIZ_VAL = Task(
    "vizwiz_vqa_val",
    About(
        "VizWiz, validation", (" | ".join(files("val")),), "vizwiz.org; images in images/vizwiz/val", aliases=("vizwiz_val",)
    ),
    read_val,
    judge,
    vqa_rows.score_soft,
    crop=True,
)
VIZWIZ_TEST = Task(
    "vizwiz_vqa_test",
    About(
        "VizWiz, test (EvalAI)",
        (" | ".join(files("test")),),
        "StarBottle/mPLUG-Owl3-Evaluation; images from vizwiz.org in images/vizwiz/test",
        "VizWiz",
        metric="",
        aliases=("vizwiz_test",),
    ),
    read_test,
    lambda question, answer: unscored(parse(answer)),
    submission=submission,
    crop=True,
)
