"""Options found in answers: stated examples, and a second implementation that reads letter by letter."""

import random

import pytest
from answer_corpus import answers

from owl3_jax.evaluation.official.choices import check_answer, is_interleave_match, marked_letter, mmbench, videomme
from tests.unit.evaluation.official.test_vqa import one_line, second_punctuation

COUNT = 20_000


def second_letter(answer: str) -> str:
    for text in (answer, answer + "."):
        found = [
            text[place]
            for place in range(len(text) - 1)
            if text[place] in "ABCDE"
            and text[place + 1] in ".,:)"
            and not (place and (text[place - 1].isalnum() or text[place - 1] == "_"))
        ]
        if found:
            return max(found)
    return "X"


def second_mmbench(answer: str, options: list[str]) -> str:
    letter = second_letter(answer)
    answer = answer.lower()
    found = [index for index, option in enumerate(options) if option.lower() in answer or answer in option.lower()]
    return letter if letter != "X" else chr(65 + found[0]) if found else "X"


def second_videomme(answer: str) -> str:
    answer = answer.strip()
    for phrase in ("The best answer is", "The correct answer is", "The answer is", "The answer"):
        answer = "".join(answer.split(phrase))
    for phrase in ("The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:"):
        answer = "".join(answer.split(phrase))
    for phrase in ("The correct answer", "The correct option"):
        answer = "".join(answer.split(phrase))
    if len(answer.split()) > 10 and not set(answer) & set("ABCD"):
        return "A"
    return next((letter for letter in answer if letter in "ABCD"), "A")


def second_check(answer: str, gold: str) -> bool:
    words, gold_words = answer.lower().split(" "), gold.lower().split(" ")
    text = " ".join(gold_words[1:])
    text = text[:-1] if text[-1] == "." else text
    return "".join(letter for letter in words[0] if letter != ".") in gold_words[0] or text in " ".join(words[1:])


def second_interleave(answer: str, gold: str) -> bool:
    def trim(text: str) -> str:
        text = second_punctuation(one_line(text))
        for mark in "'\")(":
            while text.startswith(mark):
                text = text[1:]
            while text.endswith(mark):
                text = text[:-1]
        return text.strip().lower()

    answer, gold = trim(trim(answer)), trim(trim(gold))
    letters = [part.strip() for part in answer.split(":") if part.strip() in list("abcdefgh")]
    return (letters[-1] if ":" in answer and letters else answer) == gold


def test_two_implementations_agree():
    rng = random.Random(1)
    pool = [answer for answer in answers(2_000, seed=2) if answer.strip()]
    rights = 0
    for answer in answers(COUNT, seed=0):
        options = rng.sample(pool, 4)
        assert marked_letter(answer) == second_letter(answer)
        assert mmbench(answer, options) == second_mmbench(answer, options)
        assert videomme(answer) == second_videomme(answer)
        gold = f"{rng.choice('ABCD')}. {rng.choice(options)}"
        assert check_answer(answer, gold) == second_check(answer, gold)
        letter = rng.choice("ABCD")
        assert is_interleave_match(answer, letter) == second_interleave(answer, letter)
        rights += is_interleave_match(answer, letter)
    assert rights > 100


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("the answer is D", "D"),
        ("Option A: … C.", "C"),
        ("(B) cat", "B"),
        ("b.", "X"),
        ("", "X"),
        ("DAB.", "X"),
        ("A. B.", "B"),
    ],
)
def test_a_marked_letter(answer, letter):
    assert marked_letter(answer) == letter


@pytest.mark.parametrize("answer, letter", [("", "A"), ("a DOG", "B"), ("do", "B"), ("fish", "X"), ("C", "C")])
def test_mmbench_falls_back_on_the_text_of_an_option(answer, letter):
    assert mmbench(answer, ["cat", "dog", "bird"]) == letter


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("", "A"),
        ("The answer is C", "C"),
        ("Best answer: C", "B"),
        ("no idea", "A"),
        ("the dog " * 200, "A"),
        ("Answer: D", "D"),
    ],
)
def test_videomme(answer, letter):
    assert videomme(answer) == letter


@pytest.mark.parametrize(
    "answer, right",
    [
        ("", True),
        (".", True),
        ("A", True),
        ("A.", True),
        ("(A)", False),
        ("A:", False),
        ("cat", False),
        ("(A) cat", True),
        ("The cat", True),
        ("A\nbecause", False),
    ],
)
def test_check_answer(answer, right):
    assert check_answer(answer, "A. cat") is right


def test_an_option_without_text_is_an_error():
    with pytest.raises(ValueError, match="no text"):
        check_answer("A", "A. ")


@pytest.mark.parametrize(
    "answer, right",
    [("B", True), ("(b)", True), ("B.", True), ("B. cat", False), ("Answer: B", True), ("b : c", False), ("", False)],
)
def test_interleave_does_not_extract_the_option(answer, right):
    assert is_interleave_match(answer, "B") is right
