"""POPE's counts: by hand, and against sums over lists."""

import random

import pytest
from answer_corpus import answers

from owl3_jax.evaluation.official.yes_no import YesNo, yes_or_no


@pytest.mark.parametrize(
    "answer, found", [("Yes, there is.", "yes"), (" No. ", "no"), ("yes!", "yes!"), ("", ""), ("Yes it is", "yes it is")]
)
def test_what_of_an_answer_is_compared(answer, found):
    assert yes_or_no(answer) == found


def test_scores_by_hand():
    pairs = [("yes", "yes"), ("Yes.", "no"), ("no", "no"), ("No, none", "yes"), ("maybe", "yes"), ("yes", "yes")]
    counts = YesNo.of(pairs)
    assert counts == YesNo(true_positive=2, false_positive=1, true_negative=1, false_negative=1, unclear_yes=1, unclear_no=0)
    scores = (counts.accuracy, counts.precision, counts.recall, counts.f1, counts.yes_ratio, counts.strict_accuracy)
    assert scores == pytest.approx((3 / 5, 2 / 3, 2 / 3, 2 / 3, 3 / 6, 3 / 6))
    assert (counts.strict_recall, counts.strict_f1) == pytest.approx((2 / 4, 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)))


def test_no_answer_divides_by_nothing():
    counts = YesNo.of([("perhaps", "no")])
    assert (counts.accuracy, counts.precision, counts.recall, counts.f1, counts.yes_ratio, counts.strict_accuracy) == (0,) * 6


def test_a_gold_answer_is_yes_or_no():
    with pytest.raises(ValueError, match="'Yes'"):
        YesNo.of([("yes", "Yes")])


def test_two_implementations_agree():
    rng = random.Random(0)
    pairs = [
        (rng.choice([answer, "yes", "No.", "Yes, a cat"]), rng.choice(["yes", "no"])) for answer in answers(20_000, seed=3)
    ]
    short = [(answer.strip().split(".")[0].split(",")[0].strip().lower(), gold) for answer, gold in pairs]
    said = [(found, gold) for found, gold in short if found in ("yes", "no")]
    yes = [gold == "yes" for found, gold in said if found == "yes"]
    counts = YesNo.of(pairs)
    assert counts.accuracy == pytest.approx(sum(found == gold for found, gold in said) / len(said))
    assert counts.precision == pytest.approx(sum(yes) / len(yes))
    assert counts.recall == pytest.approx(sum(yes) / sum(gold == "yes" for _, gold in said))
    assert counts.f1 == pytest.approx(2 * sum(yes) / (len(yes) + sum(gold == "yes" for _, gold in said)))
    assert counts.yes_ratio == pytest.approx(len(yes) / len(pairs))
    assert counts.strict_accuracy == pytest.approx(sum(found == gold for found, gold in short) / len(pairs))
