"""MM-Vet: open questions that take several abilities, scored by a judge: its own grader, or a model behind a URL."""

import json
from collections.abc import Mapping, Sequence

from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.multiple_choice import require
from owl3_jax.evaluation.question import Answered, Question, unscored
from owl3_jax.evaluation.task import About, Task

_FILE = "dataset/mmvet/mm-vet.json"


def read(data: DataRoot) -> list[Question]:
    """All questions, with the reference answers and abilities where the file has them, for a judge."""
    rows = data.json(_FILE)
    if not isinstance(rows, dict):
        raise DataError(f"{data.location(_FILE)} must be an object of questions by their ids")
    questions = []
    for name, row in rows.items():
        require(row, f"question {name} of MM-Vet", "imagename", "question")
        facts = {key: row[key] for key in ("answer", "capability") if row.get(key)} | {"question": str(row["question"])}
        image = f"images/mmvet/images/{row['imagename']}"
        questions.append(Question(name, f"<|image|>\n{str(row['question']).strip()}", images=(image,), facts=facts))
    return questions


def submission(answered: Sequence[Answered]) -> Mapping[str, bytes]:
    """The JSON that MM-Vet's grader reads."""
    answers = {each.question.id: each.answer for each in answered}
    return {"mmvet.json": json.dumps(answers, ensure_ascii=False, indent=1).encode()}


def judge_prompt(question: Question, answer: str) -> str:
    """Asks for a score of an answer against the reference answers of the data."""
    return (
        "Score an answer to a question about an image that you cannot see, by the reference answer. 0 is wrong, 1 is right, "
        "values between are partly right: the share of what the reference asks for that the answer has. In the reference, "
        "<OR> separates answers of which one is enough, and <AND> parts that all must be there. Give the number alone.\n\n"
        f"Question: {question.facts['question']}\nReference: {question.facts.get('answer', '')}\nAnswer: {answer}\nScore:"
    )


MMVET = Task(
    "mmvet",
    About(
        "MM-Vet (judge)", (_FILE,), "yuweihao/MM-Vet; images in images/mmvet/images", "MM-Vet", metric="", aliases=("mm_vet",)
    ),
    read,
    lambda question, answer: unscored(answer),
    submission=submission,
    judge_prompt=judge_prompt,
    crop=True,
)
