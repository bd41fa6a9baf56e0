"""Which questions are shown."""

from owl3_jax.config import EvalConfig
from owl3_jax.evaluation import samples
from owl3_jax.evaluation.answering import Answers
from owl3_jax.evaluation.tasks import make_tasks
from tests.unit.evaluation.toys import Counting

EVAL = EvalConfig(questions=3, exact_match_images=(2, 1, 23), distractor_questions=2, distractor_images=(1, 5))
TASKS = make_tasks(EVAL)


def answers(text: str | None = None) -> Answers:
    """The same to all, or the right ones."""
    return {(task.name, prompt.id): text or prompt.question.expected for task in TASKS for prompt in task.prompts()}


def test_samples_are_spread_over_sets_with_few_images():
    shown = samples.choose(TASKS, answers(), 5)
    assert len(shown) == 5
    assert all(sample.card.is_right for sample in shown)
    assert len({tuple(sample.card.image_names) for sample in shown}) == 5
    assert all(len(sample.card.images) <= samples.MOST_IMAGES for sample in shown)
    assert {sample.task for sample in shown} == {"exact_match", "distractor_resistance"}
    assert len(samples.choose(TASKS, answers(), 1000)) == 8  # not those with 23 images


def test_of_each_set_a_question_of_its_own_is_shown():
    """The second set its second question, and so on; of a question with several samples the first."""
    shown = [samples.to_record(sample) for sample in samples.choose(TASKS, answers(), 1000)]
    sets = [each for task in TASKS for each in task.sets if each.images <= samples.MOST_IMAGES]
    for number, (record, questions) in enumerate(zip(shown, sets, strict=True)):
        prompt = questions.prompts[number * questions.samples_per_question % len(questions.prompts)]
        assert (record["question"], record["naming"]) == (prompt.question.text, questions.naming)
        assert record["expected"] == prompt.question.expected


def test_a_wrong_sample_is_shown_as_wrong():
    (sample,) = samples.choose(TASKS, answers("no"), 1)
    record = samples.to_record(sample)
    assert sample.card.is_right is record["right"] is False
    assert sample.card.answer == record["answer"] == "no"
    assert sample.card.title == "by colour · 1 image" and len(sample.card.images) == 1


def test_options_follow_the_question_on_lines_of_their_own():
    card = samples.choose(TASKS, answers(), 1000)[-1].card
    first, *options = card.question.split("\n")
    assert first.startswith("In Image ") and [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]


def test_a_task_may_show_nothing():
    assert samples.choose([Counting((), b"")], {}, 3) == []
