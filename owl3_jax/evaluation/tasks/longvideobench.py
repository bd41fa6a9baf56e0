"""LongVideoBench, validation: multiple choice about videos of up to an hour, without their subtitles."""

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.multiple_choice import LETTER, letter_of, lettered, option_texts, require
from owl3_jax.evaluation.question import Excerpt, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks.mvbench import judge

FRAMES = 64
_FILES = ("dataset/LongVideoBench/lvb_val.json", "dataset/longvideobench/lvb_val.json")


def read(data: DataRoot) -> list[Question]:
    """The validation set. As released, each video is read as a whole."""
    questions = []
    for number, row in enumerate(data.rows(*_FILES)):
        name = f"question {number} of LongVideoBench"
        require(row, name, "video_path", "question", "candidates", "correct_choice")
        options = option_texts(row["candidates"], name)
        text = f"Question: <|video|>\n{row['question']}\nOptions: {lettered(options)}\n{LETTER}"
        questions.append(
            Question(
                str(row.get("id", number)),
                text,
                letter_of(row["correct_choice"], options, name, ("place",)),
                videos=(Excerpt(f"{str(row['#']).rpartition('/')[0]}/videos/{row['video_path']}", FRAMES),),
                options=options,
                split=_split(row.get("duration_group")),
            )
        )
    return questions


def _split(group: object) -> str:
    return f"up to {group} s" if group else ""


LONGVIDEOBENCH = Task(
    "longvideobench_val_v",
    About(
        f"LongVideoBench, validation ({FRAMES} frames)",
        (" | ".join(_FILES),),
        "longvideobench/LongVideoBench on the Hugging Face hub, in dataset/LongVideoBench",
        "LongVideoBench",
        aliases=("long_video_bench_dev", "longvideobench_val", "longvideobench", "long_video_bench", "longvideobench_val_i"),
    ),
    read,
    judge,
    frames=FRAMES,
)
