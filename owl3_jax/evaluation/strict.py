"""Answers as a careful reader takes them: what the official reading lets through or misses does not count, or does.

An empty answer names nothing. An option is named by its letter, alone or before the text, or by its whole text.
"""

import re
from collections.abc import Sequence

from owl3_jax.evaluation.official.vqa import normalize_prediction
from owl3_jax.evaluation.scores import LETTERS

_ALONE = re.compile(r"[\s(\[\"'*]*([A-Za-z])[\s)\]\"'*.,:]*")
_LEADING = re.compile(r"[\s(\[*]*([A-Z])(?:[)\].:,]|\*\*|\s*$|\n)|\(([a-z])\)")
_ANNOUNCED = re.compile(r"(?:answer|option|choice)(?:\s{1,3}is)?\s{0,3}:?\s{0,3}[(\[*\"']*([A-Z])(?![A-Za-z'])")

_ARTICLE = re.compile(r"(?<![\w'])A\s+(?!or\b|and\b)(?=[a-z])")


def letter(answer: str, count: int) -> str | None:
    """The letter of the option that an answer names by it, of the first `count`; None where it names none or several.

    It names one when it is alone, stands first with a mark (`B. cat`, `(b) cat`), is announced (`The answer is B`), or is the
    only capital that stands alone, where `A` before a word is an article.
    """
    letters = LETTERS[:count]
    if whole := _ALONE.fullmatch(answer):
        return _known(whole[1].upper(), letters)
    if leading := _LEADING.match(answer):
        return _known((leading[1] or leading[2]).upper(), letters)
    if announced := _ANNOUNCED.findall(answer):
        return _known(announced[-1], letters)
    alone = set(re.findall(rf"(?<![\w'])[{letters}](?![\w'])", _ARTICLE.sub("", answer)))
    return alone.pop() if len(alone) == 1 else None


def choice(answer: str, options: Sequence[str]) -> str | None:
    """`letter`; where there is none, that of the only option whose text is the answer."""
    if found := letter(answer, len(options)):
        return found
    said = normalize_prediction(answer)
    same = [name for name, option in zip(LETTERS, options, strict=False) if said and normalize_prediction(option) == said]
    return same[0] if len(same) == 1 else None


def _known(found: str, letters: str) -> str | None:
    return found if found in letters else None
