"""TextVQA: questions about text in images."""

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

_ROWS = ("dataset/textvqa/textvqa_val.json", "dataset/textvqa/textvqa_val.jsonl")
_ANNOTATIONS = "dataset/textvqa/textvqa_val_annotations.json"


def read(data: DataRoot) -> list[Question]:
    """The validation questions with their annotations. Text read by OCR is not given to the model."""
    questions = [vqa_rows.vqa_question(row, task="textvqa_val") for row in data.rows(*_ROWS)]
    return vqa_rows.annotated(data, questions, _ANNOTATIONS)


TEXTVQA = Task(
    "textvqa_val",
    About(
        "TextVQA, validation",
        (" | ".join(_ROWS), _ANNOTATIONS),
        "textvqa.org; images in images/textvqa/text_vqa",
        "TextVQA",
        aliases=("textvqa_val_ocr_v2", "textvqa"),
    ),
    read,
    vqa_rows.judge_soft,
    vqa_rows.score_soft,
    crop=True,
)
