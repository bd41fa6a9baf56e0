"""MLVU: multiple choice about long videos. The released evaluation does not have it: it is asked and scored as MVBench is,
which is how its own code scores; 128 frames are our choice."""

from owl3_jax.evaluation.data_root import DataError, DataRoot
from owl3_jax.evaluation.multiple_choice import LETTER, letter_of, lettered, option_texts, require
from owl3_jax.evaluation.question import Excerpt, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks.mvbench import judge

FRAMES = 128
_FILES = ("dataset/mlvu/json/*.json", "dataset/MLVU/json/*.json", "dataset/MLVU/MLVU/json/*.json")
_OPEN = ("subPlot", "summary")  # splits whose answers are texts that a judge would score


def read(data: DataRoot) -> list[Question]:
    """The multiple-choice splits."""
    questions = []
    for file in data.require(*_FILES):
        split = file.rpartition("/")[2].removesuffix(".json")
        if split.endswith(_OPEN):
            continue
        for number, row in enumerate(data.rows(file)):
            name = f"question {number} of {split} of MLVU"
            require(row, name, "video", "question", "candidates", "answer")
            options = option_texts(row["candidates"], name)
            text = f"<|video|>\nQuestion: {row['question']}\nOptions:\n{lettered(options)}\n{LETTER}"
            video = Excerpt(f"{file.rpartition('/json/')[0]}/video/{split}/{row['video']}", FRAMES)
            gold = letter_of(row["answer"], options, name, ("text", "letter"))
            kind = str(row.get("question_type") or split)
            questions.append(Question(f"{split}/{number}", text, gold, videos=(video,), options=options, split=kind))
    if not questions:
        raise DataError(f"no file of {' or '.join(_FILES)} has multiple choice")
    return questions


MLVU = Task(
    "mlvu_dev",
    About(
        f"MLVU, multiple choice ({FRAMES} frames)",
        (" | ".join(_FILES),),
        "MLVU/MVLU on the Hugging Face hub, in dataset/mlvu",
        "MLVU",
        aliases=("mlvu",),
    ),
    read,
    judge,
    frames=FRAMES,
)
