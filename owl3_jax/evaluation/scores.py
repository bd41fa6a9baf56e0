"""Pure scores: answers in, numbers out. Nothing here knows a model, an image or a file."""

import math
import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Z_95 = 1.959963984540054  # two-sided 95 % point of the standard normal distribution


def is_exact_match(answer: str, expected: str) -> bool:
    """Whether the whole answer is `expected`, ignoring whitespace: a tokenizer of words decodes `Image 12: 7` with more."""
    return "".join(answer.split()) == "".join(expected.split())


def parse_choice(answer: str, options: Sequence[str]) -> int | None:
    """The option that `answer` names by its letter (A is 0, B is 1, ...), or None if it names none.

    The last standalone letter decides: `red 7 B`, `B`, `(B)` and `B.` all mean option 1. A letter beyond the
    options or within a word is not a choice; nor is a lower-case one, since `a` is a word.
    """
    letters = LETTERS[: len(options)]
    found = re.findall(rf"(?<!\w)[{letters}](?!\w)", answer)
    return letters.index(found[-1]) if found else None


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (95 % by default).

    Unlike the plain normal one it stays within [0, 1] and is right near 0 and 1, where our scores are.
    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"need 0 <= successes <= trials and at least one trial, got {successes} of {trials}")
    share = successes / trials
    center = share + z**2 / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (center - margin) / scale), min(1.0, (center + margin) / scale)
