"""Scores of many answers against second implementations, and intervals against what they claim."""

import random

import numpy as np
import pytest
from answer_corpus import answers

from owl3_jax.evaluation import strict
from owl3_jax.evaluation.by_images import circular_by_images, pivot
from owl3_jax.evaluation.metrics import accuracy, add_means, bootstrap_metric, circular, mean_metric, resampled
from owl3_jax.evaluation.official.yes_no import YesNo
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.tasks.nextqa import judge


def made(count: int, seed: int = 0) -> list[Answered]:
    """Answers in groups of one to four, in a random order, of two splits."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        group, split = f"g{rng.randrange(count // 3)}", rng.choice(["left", "right"])
        right = float(rng.random() < 0.7)
        question = Question(str(number), "?", "A", group=f"{split}{group}", split=split, facts={"images": rng.choice([1, 5])})
        found.append(Answered(question, "", Judged(right, right * rng.choice([0, 1]))))
    return found


def test_circular_accuracy_agrees_with_a_second_implementation_on_20_000_answers():
    answered = made(20_000)
    for reading in ("official", "strict"):
        right: dict[str, bool] = {}
        for each in answered:
            share = each.judged.official if reading == "official" else each.judged.strict
            right[each.question.group] = right.get(each.question.group, True) and share == 1
        found = circular(answered)[reading]["circular_accuracy"]
        assert found.value == pytest.approx(100 * sum(right.values()) / len(right)) and found.units == len(right)
    by_split = [each for each in answered if each.question.split == "left"]
    assert circular(answered)["official"]["circular_accuracy (left)"] == circular(by_split)["official"]["circular_accuracy"]
    mean = sum(each.judged.official for each in answered) / len(answered)
    assert accuracy(answered)["official"]["accuracy"].value == pytest.approx(100 * mean)


def test_scores_by_the_number_of_images_are_those_of_the_parts():
    answered = made(600)
    scores = circular_by_images(answered)["official"]
    plain, series = pivot(scores)
    assert set(plain) == {"accuracy", "circular_accuracy"} and set(series["accuracy (left)"]) == {1, 5}
    part = [each for each in answered if each.question.split == "left" and each.question.facts["images"] == 5]
    assert series["accuracy (left)"][5] == accuracy(part)["official"]["accuracy"]
    assert series["circular_accuracy (left)"][5] == circular(part)["official"]["circular_accuracy"]


def test_nextqa_agrees_with_a_second_implementation_on_20_000_answers():
    rng = random.Random(5)
    for answer in answers(20_000, seed=5):
        gold = rng.choice("ABCDE")
        found = judge(Question("0", "?", gold, options=("a", "b", "c", "d", "e")), answer.strip())
        first = answer.strip()[0].lower() if answer.strip() else "x"
        assert found.official == (first == gold.lower())


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[
            ("B", "B"),
            ("b", "B"),
            ("(b)", "B"),
            (" B. ", "B"),
            ("B. cat", "B"),
            ("B: cat", "B"),
            ("(B) cat", "B"),
            ("B\nsince", "B"),
        ],
        *[
            ("The answer is B.", "B"),
            ("Answer: B", "B"),
            ("answer is (C)", "C"),
            ("I choose D, of course", "D"),
            ("**B**", "B"),
        ],
        *[
            ("", None),
            ("A cat is here", None),
            ("A B", None),
            ("A or B", None),
            ("cat", None),
            ("F", None),
            ("I", None),
            ("选项是 C。", "C"),
        ],
        *[("Both B and C", None), ("B'nai", None)],
    ],
)
def test_a_careful_reader_finds_the_letter(answer, letter):
    assert strict.letter(answer, 5) == letter


def test_a_careful_reader_finds_the_only_option_with_the_answers_text():
    options = ("a red car", "two", "Two", "the dog")
    assert strict.choice("A red car.", options) == "A" and strict.choice("dog", options) == "D"
    assert strict.choice("2", options) is None and strict.choice("", options) is None and strict.choice("C", options) == "C"


def test_a_wilson_interval_for_counts_and_a_normal_one_for_means():
    assert mean_metric([1.0] * 10).high == pytest.approx(100) and 60 < mean_metric([1.0] * 10).low < 80
    found = mean_metric([0.3, 0.6, 0.9, 1.0])
    assert found.value == pytest.approx(70) and found.low == pytest.approx(
        70 - 196 * np.std([0.3, 0.6, 0.9, 1], ddof=1) / 2, abs=0.01
    )
    with pytest.raises(ValueError, match="there is no answer to score"):
        mean_metric([])


def test_the_bootstraps_interval_covers_the_truth_as_often_as_it_says():
    """Of 60 samples from a known population about 57 have it; 52 to 60 within three standard deviations."""
    rng, shares = np.random.default_rng(1), np.array([0.4, 0.1, 0.3, 0.1, 0.05, 0.05])
    truth = 100 * YesNo(*map(int, 1000 * shares)).f1
    covered = 0
    for _ in range(60):
        counts = YesNo(*rng.multinomial(300, shares).tolist())
        metric = bootstrap_metric(counts.f1, [YesNo(*row).f1 for row in resampled(counts)], 300)
        covered += metric.low <= truth <= metric.high
    assert 52 <= covered <= 60


def test_means_over_tasks_are_of_the_scores_that_all_have():
    parts = {name: accuracy(made(60, seed)) for name, seed in (("a", 1), ("b", 2))}
    del parts["b"]["official"]["accuracy (left)"]
    found = add_means(parts)["official"]
    assert set(found) == {"accuracy", "accuracy (right)"}
    values = [part["official"]["accuracy"] for part in parts.values()]
    assert found["accuracy"].value == pytest.approx(sum(each.value for each in values) / 2)
    assert found["accuracy"].high - found["accuracy"].low < min(each.high - each.low for each in values)
