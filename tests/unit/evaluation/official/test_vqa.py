"""The VQA normaliser, its accuracy, EvalAI, GQA: stated examples, and a second implementation that reads letter by letter."""

import itertools
import random

import pytest
from answer_corpus import answers

from owl3_jax.evaluation.official.vqa import CONTRACTIONS, evalai, gqa, normalize_prediction, soft_accuracy, strip_punctuation

COUNT = 20_000


def second_punctuation(text: str) -> str:
    is_number = any(a.isdigit() and b == "," and c.isdigit() for a, b, c in zip(text, text[1:], text[2:], strict=False))
    pairs = list(itertools.pairwise(text))
    beside_space = {a for a, b in pairs if b == " "} | {b for a, b in pairs if a == " "}
    marks = set(';/[]"{}()=+\\_-><@`,?!')
    letters = [
        "" if letter in marks and (is_number or letter in beside_space) else " " if letter in marks else letter
        for letter in text
    ]
    kept = "".join(letters)
    found, deleted = "", 0
    for place, letter in enumerate(kept):
        if letter == "." and deleted < 32 and not kept[place + 1 : place + 2].isdigit():
            deleted += 1
        else:
            found += letter
    return found


def second_words(text: str) -> str:
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    found = []
    for word in text.lower().split():
        if word in ("a", "an", "the"):
            continue
        number = "0" if word == "none" else str(numbers.index(word)) if word in numbers else word
        found.append(CONTRACTIONS.get(number, number))
    return " ".join(found)


def one_line(text: str) -> str:
    return "".join(" " if letter in "\n\t" else letter for letter in text).strip()


def second_evalai(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in ",?")
    return second_words(second_punctuation(one_line(" 's".join(text.split("'s")).strip())))


def second_gqa(text: str) -> str:
    text = text.strip()
    for mark in ".,!":
        text = text[: text.index(mark)] if mark in text else text
    text = text.lower()
    for word in ("is ", "are ", "a ", "an ", "the "):
        place = text.find(word)
        if place >= 0:
            rest = text[place + len(word) :]
            again = rest.find(word)
            text = rest if again < 0 else rest[:again]
    place = text.find(" of")
    return (text if place < 0 else text[:place]).strip()


def second_accuracy(answer: str, given: list[str]) -> float:
    prediction = second_words(second_punctuation(one_line(answer)))
    if any(each != given[0] for each in given):
        given = [second_punctuation(each) for each in given]
    scores = []
    for place in range(len(given)):
        others = [given[other] for other in range(len(given)) if other != place]
        scores.append(min(1, others.count(prediction) / 3))
    return sum(scores) / len(scores)


def test_two_implementations_agree():
    rng = random.Random(1)
    pool = list(answers(2_000, seed=2))
    for answer in answers(COUNT, seed=0):
        assert strip_punctuation(answer) == second_punctuation(answer)
        assert evalai(answer) == second_evalai(answer)
        assert gqa(answer) == second_gqa(answer)
        given = [normalize_prediction(answer) if rng.random() < 0.3 else rng.choice(pool) for _ in range(rng.randrange(1, 11))]
        annotations = [{"answer": each, "answer_id": number} for number, each in enumerate(given)]
        assert soft_accuracy(answer, annotations) == pytest.approx(second_accuracy(answer, given), abs=1e-12)


@pytest.mark.parametrize(
    "text, found",
    [
        ("3.", "3"),
        ("a.b", "ab"),
        (".5", ".5"),
        ("3.5", "3.5"),
        ("it's 5:30", "it's 5:30"),
        ("1,000 (a-b)", "1000 ab"),
        ("a-b", "a b"),
    ],
)
def test_punctuation(text, found):
    assert strip_punctuation(text) == found


def test_the_33rd_period_stays():
    assert strip_punctuation("." * 40) == "." * 8


def test_contractions():
    """The table of the evaluator has 120 entries; two of them change nothing."""
    assert len(CONTRACTIONS) == 118
    assert [CONTRACTIONS[key] for key in ("dont", "hes", "hed", "wont", "somebody'd")] == [
        "don't",
        "he's",
        "he'd",
        "won't",
        "somebodyd",
    ]
    assert normalize_prediction("Let's see: she's The ONE, none Im") == "let's see: she's 1 0 im"


@pytest.mark.parametrize("matches, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy(matches, score):
    annotations = [{"answer": "cat" if number < matches else "dog", "answer_id": number} for number in range(10)]
    assert soft_accuracy("The cat.", annotations) == pytest.approx(score)


def test_annotated_answers_without_an_id_are_one():
    assert soft_accuracy("cat", [{"answer": "cat"}] * 10) == 0
    with pytest.raises(ValueError, match="at least one"):
        soft_accuracy("cat", [])


def test_annotated_answers_that_are_all_the_same_stay_as_they_are():
    same = [{"answer": "ice-cream", "answer_id": number} for number in range(10)]
    assert soft_accuracy("ice-cream", same) == 0
    assert soft_accuracy("ice-cream", [*same, {"answer": "cake", "answer_id": 10}]) > 0.9


@pytest.mark.parametrize(
    "answer, found",
    [
        ("sofa bed", "bed"),
        ("pizza box", "box"),
        ("banana tree", "tree"),
        ("urban area", "area"),
        ("this is red", ""),
        ("It is a red car.", "red car"),
        ("a piece of cake", "piece"),
    ],
)
def test_gqa_looks_for_words_within_words(answer, found):
    assert gqa(answer) == found
