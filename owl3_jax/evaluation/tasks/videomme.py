"""Video-MME: multiple choice about short, medium and long videos, without and with subtitles."""

import re

from owl3_jax.evaluation.data_root import DataRoot, Row, hub_files
from owl3_jax.evaluation.multiple_choice import LETTER, judge_letters, letter_of, option_texts, require
from owl3_jax.evaluation.official.choices import videomme
from owl3_jax.evaluation.question import Excerpt, Judged, Question
from owl3_jax.evaluation.task import About, Task

FRAMES = 128
_FOLDERS = ("videomme",)
_VIDEOS = "dataset/videomme/data/{}.mp4"
_SUBTITLES = "dataset/videomme/subtitle/{}.srt"


def read(data: DataRoot, *, subtitles: bool = False) -> list[Question]:
    """All questions; those with subtitles have all lines of their video before the question."""
    questions = []
    for number, row in enumerate(data.hub_rows(_FOLDERS, "test")):
        name = f"question {number} of Video-MME"
        require(row, name, "videoID", "question", "options", "answer")
        lettered = option_texts(row["options"], name)  # with their letters, as the data has them
        options = tuple(re.sub(r"^[A-Z]\.\s*", "", option) for option in lettered)
        spoken = _subtitles(data, row) if subtitles else ""
        text = f"<|video|>\n{spoken}Question: {row['question']}\nOptions: {chr(10).join(lettered)}\n{LETTER}"
        questions.append(
            Question(
                str(row.get("question_id", number)),
                text,
                letter_of(row["answer"], options, name, ("letter",)),
                videos=(Excerpt(_VIDEOS.format(row["videoID"]), FRAMES),),
                options=options,
                split=str(row.get("duration") or ""),
                facts={key: row[key] for key in ("domain", "sub_category", "task_type") if row.get(key)},
            )
        )
    return questions


def judge(question: Question, answer: str) -> Judged:
    """The first capital A to D; A where there is none, also of an empty answer."""
    return judge_letters(question, answer, videomme(answer))


def _subtitles(data: DataRoot, row: Row) -> str:
    """The lines of a video's subtitles; nothing where it has none, as some have."""
    found = data.find(_SUBTITLES.format(row["videoID"]))
    if not found:
        return ""
    lines = [line.strip() for line in data.text(found[0]).split("\n")]
    spoken = [line for line in lines if line and not line.isdecimal() and "-->" not in line]
    without_tags = re.sub(r"<[^>]*>", "", " ".join(spoken))
    return f"This video's subtitles are listed below:\n{without_tags}\n" if spoken else ""


VIDEOMME = Task(
    "videomme",
    About(
        f"Video-MME, no subtitles ({FRAMES} frames)",
        (hub_files(_FOLDERS, "test"),),
        "lmms-lab/Video-MME on the Hugging Face hub, in dataset/videomme; videos in dataset/videomme/data",
        "VideoMME",
        aliases=("video_mme",),
    ),
    read,
    judge,
    frames=FRAMES,
)
VIDEOMME_SUBTITLES = Task(
    "videomme_w_subtitle",
    About(
        f"Video-MME, with subtitles ({FRAMES} frames)",
        (hub_files(_FOLDERS, "test"), "dataset/videomme/subtitle/*.srt"),
        "as videomme; subtitles in dataset/videomme/subtitle",
    ),
    lambda data: read(data, subtitles=True),
    judge,
    frames=FRAMES,
)
