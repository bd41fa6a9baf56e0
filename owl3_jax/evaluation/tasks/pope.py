"""POPE: is there such an object in the image? Three sets of questions; the paper gives one number for all."""

from collections.abc import Callable, Sequence

from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.metrics import Scores, bootstrap_metric, resampled
from owl3_jax.evaluation.official.yes_no import YesNo, yes_or_no
from owl3_jax.evaluation.question import Answered, Judged, Question, Reading
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import vqa_rows

SETS = ("random", "popular", "adversarial")


def make_task(name: str) -> Task:
    """One of the three sets."""
    file = f"dataset/pope/ImageQA_POPE_{name}.jsonl"
    about = About(
        f"POPE, {name}",
        (file,),
        "StarBottle/mPLUG-Owl3-Evaluation; COCO val2014 images in images/mscoco/images/val2014",
        aliases=(f"pope_{name[:3]}",),
    )
    return Task(f"pope_{name}", about, lambda data: read(data, file), judge, score, crop=True)


def read(data: DataRoot, file: str) -> list[Question]:
    """The questions of a file, whose right answers are yes or no."""
    questions = []
    for row in data.rows(file):
        gold = str(row.get("answer")).strip().lower()
        if gold not in ("yes", "no"):
            raise DataError(
                f"{file}: the right answer must be yes or no, got {row.get('answer')!r} in row {str(dict(row))[:80]}"
            )
        questions.append(vqa_rows.vqa_question(row, task="pope", gold=gold))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """What stands before the first period and comma."""
    parsed = yes_or_no(answer)
    return Judged(float(parsed == question.gold), float(parsed == question.gold), parsed, parsed)


_SHARES: dict[Reading, dict[str, Callable[[YesNo], float]]] = {
    "official": {
        "accuracy": lambda counts: counts.accuracy,
        "precision": lambda counts: counts.precision,
        "recall": lambda counts: counts.recall,
        "f1": lambda counts: counts.f1,
        "yes_ratio": lambda counts: counts.yes_ratio,
    },
    "strict": {
        "accuracy": lambda counts: counts.strict_accuracy,
        "precision": lambda counts: counts.precision,
        "recall": lambda counts: counts.strict_recall,
        "f1": lambda counts: counts.strict_f1,
        "yes_ratio": lambda counts: counts.yes_ratio,
    },
}


def score(answered: Sequence[Answered]) -> Scores:
    """Officially, answers that are neither yes nor no are in `yes_ratio` alone; strictly, they are wrong."""
    counts = YesNo.of((_said(each), each.question.gold or "") for each in answered)
    drawn = [YesNo(*row) for row in resampled(counts)]
    return {
        reading: {
            name: bootstrap_metric(share(counts), [share(each) for each in drawn], len(answered))
            for name, share in shares.items()
        }
        for reading, shares in _SHARES.items()
    }


def _said(each: Answered) -> str:
    """The answer; a question that has none counts as answered wrongly."""
    if not each.error:
        return each.judged.parsed
    return "no" if each.question.gold == "yes" else "yes"


POPE = tuple(map(make_task, SETS))
