"""OK-VQA: questions about COCO images that need knowledge of the world."""

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

_ROWS = ("dataset/okvqa/okvqa_val.json", "dataset/okvqa/okvqa_val.jsonl")
_QUESTIONS = "dataset/okvqa/OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "dataset/okvqa/mscoco_val2014_annotations.json"


def read(data: DataRoot) -> list[Question]:
    """The validation questions with their annotations."""
    rows = vqa_rows.rows_or_questions(data, _ROWS, _QUESTIONS, "val2014/COCO_val2014_{:012d}.jpg")
    questions = [vqa_rows.vqa_question(row, task="okvqa_val") for row in rows]
    return vqa_rows.annotated(data, questions, _ANNOTATIONS)


OKVQA = Task(
    "ok_vqa_val2014",
    About(
        "OK-VQA, validation",
        (f"{' | '.join(_ROWS)} | {_QUESTIONS}", _ANNOTATIONS),
        "okvqa.allenai.org; COCO val2014 images in images/mscoco/images/val2014",
        "OK-VQA",
        aliases=("okvqa_val", "okvqa", "ok_vqa"),
    ),
    read,
    vqa_rows.judge_soft,
    vqa_rows.score_soft,
    crop=True,
)
