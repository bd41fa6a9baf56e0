"""AI2D: multiple choice about diagrams of school books."""

from owl3_jax.evaluation.data_root import DataRoot, hub_files
from owl3_jax.evaluation.multiple_choice import (
    LETTER,
    first_character,
    judge_letters,
    letter_of,
    lettered,
    option_texts,
    require,
)
from owl3_jax.evaluation.question import Judged, Question
from owl3_jax.evaluation.task import About, Task

_FOLDERS = ("ai2d",)


def read(data: DataRoot) -> list[Question]:
    """The test set; the right option is stored as its place."""
    questions = []
    for number, row in enumerate(data.hub_rows(_FOLDERS, "test")):
        name = f"question {number} of AI2D"
        require(row, name, "question", "options", "answer")
        options = option_texts(row["options"], name)
        text = f"<|image|>\nQuestion: {row['question']}\nOptions:\n{lettered(options)}\n{LETTER}"
        gold = letter_of(row["answer"], options, name, ("place", "letter", "text"))
        image, facts = data.media(row, "image"), {"question": str(row["question"])}
        questions.append(Question(str(row.get("question_id", number)), text, gold, (image,), options=options, facts=facts))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """The first character, which has to be a capital. The released code fails on an empty answer."""
    return judge_letters(question, answer, first_character(answer))


AI2D = Task(
    "ai2d",
    About(
        "AI2D, test",
        (hub_files(_FOLDERS, "test"),),
        "lmms-lab/ai2d on the Hugging Face hub, in dataset/ai2d",
        "AI2D",
    ),
    read,
    judge,
    crop=True,
)
