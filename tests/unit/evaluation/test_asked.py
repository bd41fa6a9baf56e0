"""Which questions are asked, and in which order."""

import collections
from pathlib import Path

import pytest

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.asked import Asked, Selection, ask_all, in_order_of_asking, parse_shard, questions_of
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Excerpt, Judged, Question
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import with_frames

QUESTIONS = [Question(str(number), "?", "A", group=str(number // 2)) for number in range(20)]


def task(questions: list[Question], name: str = "made", frames: int | None = None) -> Task:
    return Task(name, About("made"), lambda data: questions, lambda question, answer: Judged(0, 0), frames=frames)


def test_a_limit_is_a_sample_of_whole_groups_that_its_seed_fixes():
    chosen = Selection(limit=4).of(QUESTIONS)
    assert len(chosen) == 8 and chosen != QUESTIONS[:8]
    assert set(collections.Counter(each.group for each in chosen).values()) == {2}
    assert [int(each.id) for each in chosen] == sorted(int(each.id) for each in chosen)
    assert Selection(limit=4).of(QUESTIONS) == chosen != Selection(limit=4, seed=1).of(QUESTIONS)
    assert Selection(limit=100).of(QUESTIONS) == QUESTIONS


@pytest.mark.parametrize("parts", [1, 3, 10, 13])
def test_shards_are_all_questions_once_and_keep_groups_together(parts):
    shards = [Selection(limit=7, part=part, parts=parts).of(QUESTIONS) for part in range(parts)]
    together = [each.id for shard in shards for each in shard]
    assert sorted(together, key=int) == [each.id for each in Selection(limit=7).of(QUESTIONS)]
    for shard in shards:
        assert set(collections.Counter(each.group for each in shard).values()) <= {2}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "/", "-1/2"])
def test_a_wrong_shard_is_an_error(text):
    with pytest.raises(ConfigError, match="--shard must be i/n"):
        parse_shard(text)


def test_a_shard_counts_from_one():
    assert parse_shard("2/5") == (1, 5) and parse_shard(None) == (0, 1)


def test_ids_that_repeat_are_told_apart_and_no_other_changes():
    repeated = [Question(name, "?", "A") for name in ("a", "0", "a", "a/0", "1")]
    assert [each.id for each in questions_of(task(repeated), DataRoot())] == ["a/1", "0", "a/2", "a/0", "1"]
    with pytest.raises(ConfigError, match="task made has no questions"):
        questions_of(task([]), DataRoot())


def test_questions_with_several_numbers_of_frames_follow_each_other_the_largest_first():
    on_video = task([Question(str(n), "<|video|>", "A", videos=(Excerpt(f"{n}.mp4", 16),)) for n in range(3)], "clips", 16)
    swept = [with_frames(on_video, count, (4, 8)) for count in (4, 8)]
    named = [Task(**{**vars(each), "name": f"clips@{count}"}) for each, count in zip(swept, (4, 8), strict=True)]
    asked = ask_all([task(QUESTIONS[:2], "other"), *named], DataRoot(), Selection())
    order = [(each.task.name, each.question.id) for each in in_order_of_asking(asked)]
    assert order[:2] == [("other", "0"), ("other", "1")]
    assert order[2:] == [(f"clips@{count}", str(number)) for number in range(3) for count in (8, 4)]


def test_frames_of_a_task_without_videos_are_an_error():
    with pytest.raises(ConfigError, match="has no videos: leave out --frames"):
        questions_of(task(QUESTIONS, frames=16), DataRoot(settings=EvalConfig(frames=(4,))))


def test_a_question_with_a_placeholder_too_many_is_an_error():
    with pytest.raises(ValueError, match="question 7: its text has 2"):
        Question("7", "<|image|><|image|>", images=("a.png",))


def test_a_question_survives_json():
    question = Question(
        "7", "<|video|>?", "A", (), (Excerpt("a.mp4", 8, 0.5, 2.0, share=(4, 8)),), ("x", "y"), "s", "g", 1, {"a": [1]}
    )
    assert Question.from_json(question.to_json()) == question
    assert Asked(task([question]), question).key == ("made", "7")
    assert Path(question.videos[0].file).name == "a.mp4"
