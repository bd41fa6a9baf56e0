"""What the released evaluation's VQA family shares: rows, where their images are, annotations, and the soft accuracy.

Source: X-PLUG/mPLUG-Owl, folder mPLUG-Owl3/evaluation, class VQATask.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.metrics import Metric, Scores, accuracy, mean_metric
from owl3_jax.evaluation.multiple_choice import WORD
from owl3_jax.evaluation.official.vqa import normalize_prediction, soft_accuracy
from owl3_jax.evaluation.question import READINGS, Answered, Judged, Question

_FOLDERS = {  # the first that a path contains: where its file is
    "test2015": "images/mscoco/images/test2015",
    "val2014": "images/mscoco/images/val2014",
    "gqa": "images/gqa/images",
    "textvqa": "images/textvqa/text_vqa",
}


def vqa_question(row: Row, *, task: str, instruction: str = WORD, **fields: Any) -> Question:  # Any: those of Question
    """The question of a row: `image`, `question` and `question_id`, or `images`, `question` and `data_id`."""
    try:
        name = row["question_id"] if "question_id" in row else row["data_id"] if "data_id" in row else row["image"]
        image = row["image"] if "image" in row else row["images"][0]
        text = f"<|image|>{row['question']} {instruction}"
    except (KeyError, IndexError) as error:
        raise DataError(f"a row of {task} has no {error}: {str(dict(row))[:80]}") from error
    return Question(str(name), text, images=(image_path(str(image), task),), **fields)


def image_path(path: str, task: str = "") -> str:
    """Where an image of the VQA family is, below the data root."""
    file = path.rpartition("/")[2]
    if "ocrvqa" in path:
        return f"images/ocrvqa/{path}"
    for part, folder in _FOLDERS.items():
        if part in path:
            return f"{folder}/{file}"
    if task.startswith("vizwiz"):
        return f"images/vizwiz/{task.rpartition('_')[2]}/{file}"
    return path


def rows_or_questions(data: DataRoot, rows: Sequence[str], questions: str, image: str) -> list[Row]:
    """The released rows, or else those that the VQA data set's own file of questions gives.

    Args:
        data: where they are.
        rows: patterns of the released file.
        questions: a pattern of the file of questions.
        image: a question's image, with `{}` for the number of the image.
    """
    if data.find(*rows) or not data.find(questions):
        return data.rows(*rows, questions)
    listed = data.json(questions)["questions"]
    return [{**row, "image": image.format(int(row["image_id"]))} for row in listed]


def annotated(data: DataRoot, questions: Sequence[Question], pattern: str) -> list[Question]:
    """The questions with the annotations of a file, which all of them must have. Raises DataError."""
    location = data.location(data.require(pattern)[0])
    try:
        by_id = {str(each["question_id"]): each for each in data.json(pattern)["annotations"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{location} is not a file of VQA annotations: {error!r}") from error
    if left := len(set(by_id) - {question.id for question in questions}):
        print(f"{location} has answers to {left} more questions than are asked", file=sys.stderr)
    return [_annotated(question, by_id, location) for question in questions]


def judge_soft(question: Question, answer: str) -> Judged:
    """The VQA evaluator's soft accuracy; strictly, an empty answer is not right."""
    parsed = normalize_prediction(answer)
    share = soft_accuracy(answer, question.facts["annotations"])
    return Judged(share, share if parsed else 0.0, parsed, parsed)


def score_soft(answered: Sequence[Answered]) -> Scores:
    """The mean, rounded to two places as by the evaluator, also by types of answers and questions."""
    scores = accuracy(answered)
    kinds = [(each.question.facts.get(kind, ""), each) for kind in ("answer_type", "question_type") for each in answered]
    for name in dict.fromkeys(kind for kind, _ in kinds if kind):
        for reading in READINGS:
            scores[reading][f"accuracy ({name})"] = mean_metric(
                [each.judged.of(reading) for kind, each in kinds if kind == name]
            )
    return {reading: {name: _rounded(metric) for name, metric in part.items()} for reading, part in scores.items()}


def with_numbers(answers: Sequence[object]) -> list[dict[str, object]]:
    """Annotators' answers, numbered: without numbers, equal ones would count as one annotator's."""
    entries = [dict(each) if isinstance(each, Mapping) else {"answer": str(each)} for each in answers]
    return [{"answer_id": number, **entry} for number, entry in enumerate(entries, start=1)]


def _annotated(question: Question, by_id: Mapping[str, Row], location: str) -> Question:
    annotation = by_id.get(question.id)
    given = annotation.get("answers") if annotation else None
    if not isinstance(given, list) or not given or not all(isinstance(each, Mapping) and "answer" in each for each in given):
        raise DataError(f"{location} has no answers to question {question.id}, each an object with `answer`")
    assert annotation is not None
    facts = {name: annotation[name] for name in ("answer_type", "question_type") if annotation.get(name)}
    return Question(
        question.id,
        question.text,
        images=question.images,
        gold=most_given(annotation["answers"]),
        facts={**facts, "annotations": list(annotation["answers"])},
    )


def most_given(annotations: Sequence[Row]) -> str:
    """The answer that most annotators give, to be shown."""
    given = [str(each["answer"]) for each in annotations]
    return max(given, key=given.count)


def _rounded(metric: Metric) -> Metric:
    return metric._replace(value=round(metric.value, 2))
