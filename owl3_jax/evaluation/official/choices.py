"""The option that an answer names, as the released evaluation finds it."""

import re
from collections.abc import Sequence

from owl3_jax.evaluation.official.vqa import one_line, strip_punctuation
from owl3_jax.evaluation.scores import LETTERS

NO_OPTION = "X"  # what is counted where an answer names none
_LETTERS = "EDCBA"  # in the order in which they are looked for
# What Video-MME's answers lose, in this order. Two of them are pairs that a missing comma has joined, so neither half is found.
_INTRODUCTIONS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)


def marked_letter(answer: str) -> str:
    """The letter A to E that `.`, `,`, `:` or `)` follows, or that ends the answer: the last of the alphabet. Q-Bench2.

    `NO_OPTION` where there is none.
    """
    for text in (answer, answer + "."):
        for letter in _LETTERS:
            if re.search(rf"\b{letter}[.,:)]", text):
                return letter
    return NO_OPTION


def mmbench(answer: str, options: Sequence[str]) -> str:
    """`marked_letter`; where there is none, that of the first option which the answer contains, or which contains the answer.

    An empty answer is option A.
    """
    letter = marked_letter(answer)
    if letter != NO_OPTION:
        return letter
    text = answer.lower()
    for name, option in zip(LETTERS, map(str.lower, options), strict=False):
        if option in text or text in option:
            return name
    return NO_OPTION


def videomme(answer: str) -> str:
    """The first capital A to D after introductions are taken away, A where there is none: also of an empty answer."""
    text = answer.strip()
    for introduction in _INTRODUCTIONS:
        text = text.replace(introduction, "")
    found = re.search("[ABCD]", text)
    return found.group() if found else "A"


def check_answer(answer: str, gold: str) -> bool:
    """Whether an answer is option `gold`, which is `A. text`. MVBench, LongVideoBench.

    It is when its first word, without periods, is a part of gold's first word, so an empty answer is right; or when its other
    words contain gold's text. Raises ValueError for a gold without text.
    """
    first, _, rest = answer.lower().partition(" ")
    gold_first, _, gold_rest = gold.lower().partition(" ")
    if not gold_rest:
        raise ValueError(f"the right option {gold!r} has no text")
    return first.replace(".", "") in gold_first or gold_rest.removesuffix(".") in rest


def is_interleave_match(answer: str, gold: str) -> bool:
    """Whether an answer is the gold answer of LLaVA-Interleave's multiple choice: `B. cat` becomes `b cat`, which is not `b`.

    Both are normalised twice. Where a part of the answer between colons is a single letter a to h, the last such one counts.
    """
    found, right = trim(trim(answer)), trim(trim(gold))
    parts = [part.strip() for part in found.split(":")] if ":" in found else []
    letters = [part for part in parts if len(part) == 1 and part in "abcdefgh"]
    return (letters[-1] if letters else found) == right


def trim(text: str) -> str:
    """One side of an exact match: without punctuation, quotation marks and brackets around it, in lower case."""
    text = strip_punctuation(one_line(text))
    for mark in ("'", '"', ")", "("):
        text = text.strip(mark)
    return text.strip().lower()
