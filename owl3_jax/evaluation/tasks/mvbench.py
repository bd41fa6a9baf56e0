"""MVBench: twenty kinds of multiple-choice questions about short videos.

The released code draws a random frame in each part of a clip with a start and an end, without a seed, so that its scores vary
from run to run. Here the middle frames of the parts are taken.
"""

import sys

from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.multiple_choice import LETTER, judge_letters, letter_of, lettered, option_texts, require
from owl3_jax.evaluation.official.choices import NO_OPTION, check_answer
from owl3_jax.evaluation.question import Excerpt, Judged, Question
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task

FRAMES = 16
EPISODES = "episodic_reasoning"  # its videos are folders of images
_EPISODES_FPS = 3.0
_BOUND = ("action_sequence", "action_prediction", "object_interaction", "action_localization")  # whose clips have a start
FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    EPISODES: "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}


def read(data: DataRoot) -> list[Question]:
    """All splits."""
    rows = {split: _rows(data, split) for split in FOLDERS}
    missing = [split for split, each in rows.items() if not each]
    if missing and len(missing) < len(rows):
        print(f"mvbench has {len(rows) - len(missing)} of {len(rows)} splits; without {', '.join(missing)}", file=sys.stderr)
    if not any(rows.values()):
        raise DataError(f"there is no {data.location('dataset/mvbench/json')} with the splits of MVBench")
    return [_question(data, split, row, number) for split, each in rows.items() for number, row in enumerate(each)]


def judge(question: Question, answer: str) -> Judged:
    """Whether the answer's first word is a part of `a.`, or its rest contains the right option: an empty one is right."""
    right = check_answer(answer, f"{question.gold}. {option_text(question)}")
    return judge_letters(question, answer, (question.gold if right else NO_OPTION) or "")


def option_text(question: Question) -> str:
    """The right option, without its letter."""
    return question.options[LETTERS.index(question.gold or "A")]


def _rows(data: DataRoot, split: str) -> list[Row]:
    """None of a split whose file is missing: the videos of some need licences of their own, and the table has the splits."""
    is_there = data.hub_files(("mvbench",), "train", split)
    return data.hub_rows(("mvbench",), "train", split) if is_there else []


def _question(data: DataRoot, split: str, row: Row, number: int) -> Question:
    name = f"question {number} of {split} of MVBench"
    require(row, name, "video", "question", "candidates", "answer")
    options = option_texts(row["candidates"], name)
    text = f"<|video|>\nQuestion: {row['question']}\nOptions:\n{lettered(options)}\n{LETTER}"
    video = _excerpt(data, split, row)
    gold = letter_of(row["answer"], options, name, ("text", "letter"))
    return Question(f"{split}/{number}", text, gold, videos=(video,), options=options, split=split)


def _excerpt(data: DataRoot, split: str, row: Row) -> Excerpt:
    file = f"dataset/mvbench/{_video_folder(data)}/{FOLDERS[split]}/{row['video']}"
    start, end = row.get("start"), row.get("end")
    if split == EPISODES:
        return Excerpt(file, FRAMES, float(start or 0), float(end or 0), folder_fps=_EPISODES_FPS)
    if split in _BOUND and start and end:  # as released, a clip that starts at 0 is all of its video
        return Excerpt(file, FRAMES, float(start), float(end))
    return Excerpt(file, FRAMES)


def _video_folder(data: DataRoot) -> str:
    """The released code has one name, and its README another."""
    return "videos" if data.find("dataset/mvbench/videos/*") else "video"


MVBENCH = Task(
    "mvbench",
    About(
        f"MVBench, 20 splits ({FRAMES} frames)",
        tuple(f"dataset/mvbench/json/{split}.json | dataset/mvbench/**/{split}*" for split in FOLDERS),
        "OpenGVLab/MVBench on the Hugging Face hub, in dataset/mvbench; videos in dataset/mvbench/video",
        "MVBench",
    ),
    read,
    judge,
    frames=FRAMES,
)
