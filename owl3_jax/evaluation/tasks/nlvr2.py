"""NLVR2: does a sentence hold for two images?"""

from owl3_jax.evaluation.data_root import DataRoot, hub_files
from owl3_jax.evaluation.multiple_choice import require
from owl3_jax.evaluation.official.yes_no import yes_or_no
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.task import About, Task

_FOLDERS = ("nlvr2",)
_SPLIT = "unbalanced_test_public"


def read(data: DataRoot) -> list[Question]:
    """The unbalanced public test set."""
    questions = []
    for number, row in enumerate(data.hub_rows(_FOLDERS, _SPLIT)):
        name = str(row.get("question_id", number))
        require(row, f"question {name} of NLVR2", "question", "answer")
        text = (
            f"Left image: <|image|> Right image: <|image|>\n{row['question']}\n"
            "yes or no? Answer the question using a single word."
        )
        images = data.media(row, "left_image"), data.media(row, "right_image")
        gold = "no" if str(row["answer"]) == "False" else "yes"  # as released: only this string is no
        questions.append(Question(name, text, gold, images))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """What stands before the first period and comma."""
    parsed = yes_or_no(answer)
    return Judged(float(parsed == question.gold), float(parsed == question.gold), parsed, parsed)


NLVR2 = Task(
    "nlvr2",
    About(
        "NLVR2, unbalanced public test",
        (hub_files(_FOLDERS, _SPLIT),),
        "lmms-lab/NLVR2 on the Hugging Face hub, in dataset/nlvr2",
        "NLVR2",
        aliases=("nlvr2_unbalanced_test_public",),
    ),
    read,
    judge,
)
