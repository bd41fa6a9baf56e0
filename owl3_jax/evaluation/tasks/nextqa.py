"""NextQA: multiple choice about causes, times and descriptions in videos."""

from collections.abc import Sequence

from owl3_jax.evaluation.data_root import DataRoot, hub_files
from owl3_jax.evaluation.metrics import Scores, accuracy, grouped, mean_metric
from owl3_jax.evaluation.multiple_choice import LETTER, first_character, judge_letters, letter_of, lettered, require
from owl3_jax.evaluation.question import READINGS, Answered, Excerpt, Judged, Question
from owl3_jax.evaluation.task import About, Task

FRAMES = 8  # the released plan gives no number, and this is its reader's
_FOLDERS = ("nextqa",)
_GROUPS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def read(data: DataRoot) -> list[Question]:
    """The test set."""
    questions = []
    for number, row in enumerate(data.hub_rows(_FOLDERS, "test", "MC")):
        name = f"question {number} of NextQA"
        require(row, name, "video", "question", "answer", "qid", "a0", "a1", "a2", "a3", "a4")
        options = tuple(str(row[f"a{place}"]) for place in range(5))
        text = f"<|video|>\nQuestion: {row['question']}\nOptions: {lettered(options)}\n{LETTER}"
        kind = "TN" if row.get("type") == "TP" else str(row.get("type") or "")  # as released
        video = Excerpt(f"dataset/nextqa/NExTVideo/{row['video']}.mp4", FRAMES)
        gold = letter_of(row["answer"], options, name, ("place",))
        questions.append(Question(f"{row['video']}_{row['qid']}", text, gold, videos=(video,), options=options, split=kind))
    return questions


def judge(question: Question, answer: str) -> Judged:
    """The first character, in either case."""
    return judge_letters(question, answer, first_character(answer).upper())


def score(answered: Sequence[Answered]) -> Scores:
    """Also by type of question, and by the types' first letter."""
    scores = accuracy(answered)
    for reading in READINGS:
        for name, part in grouped(answered, lambda each: _GROUPS.get(each.question.split[:1], "")).items():
            scores[reading][f"accuracy ({name})"] = mean_metric([each.judged.of(reading) for each in part])
    return scores


NEXTQA = Task(
    "nextqa_mc_test",
    About(
        f"NextQA, multiple choice, test ({FRAMES} frames)",
        (hub_files(_FOLDERS, "test", "MC"),),
        "lmms-lab/NExTQA on the Hugging Face hub, in dataset/nextqa; videos in dataset/nextqa/NExTVideo",
        "NextQA",
        aliases=("next_qa_mc", "nextqa", "nextqa_mc", "next_qa"),
    ),
    read,
    judge,
    score,
    frames=FRAMES,
)
