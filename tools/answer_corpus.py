"""Answers that look like those of models, made at random from a seed."""

import random
from collections.abc import Iterator

_SHORT = """
a an the A An one ten none dont let's can't hes somebody'd yall'd've cat Cat 3 1,000 3.5 .5 a.b A B C D E F b (A) (b) A. B: C)
D, E: a. answer The is are of red sofa bed pizza box yes no Yes No. yes, Answer: Option: 狗 是 è best correct option
Best this cat's 1,2
"""
_MARKS = "' \" ( ) - _ / ? ! ; : , . ` @ [x] ... '' \\"
_WORDS = (_SHORT + _MARKS).split()
_JOINTS = ("", " ", " ", " ", "  ", "\n", "\t")
_WHOLE = (
    "",
    " ",
    ".",
    "The answer is B.",
    "(b)",
    "B: cat",
    "A B",
    "选项是 C。",
    "Option A: the cat. C.",
    "A\nbecause",
    "B. cat",
)


def answers(count: int, seed: int) -> Iterator[str]:
    """`count` answers: most of up to ten words, some of 600."""
    rng = random.Random(seed)
    for number in range(count):
        if number < len(_WHOLE):
            yield _WHOLE[number]
        else:
            length = 600 if number % 1000 == 999 else rng.randrange(11)
            yield rng.choice(_JOINTS).join(rng.choice(_WORDS) for _ in range(length))
