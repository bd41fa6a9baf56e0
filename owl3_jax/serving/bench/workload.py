"""Which conversations are held: how many pictures and which questions each has, drawn by a seed."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from owl3_jax.serving.bench.prompts import Prompts

_RANGE = re.compile(r"(\d+):(\d+)")
_CHOICE = re.compile(r"(\d+)(?:=(\d+(?:\.\d+)?))?")
_MOST_IMAGES = 100_000
_CONVERSATION, _SHARED, ARRIVALS = 2, 3, 4  # keep random draws for different things apart


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """How many images a conversation shows: counts with their probabilities."""

    probabilities: Mapping[int, float]

    @classmethod
    def parse(cls, text: str) -> "ImageCounts":
        """`4`, `1:16` (each equally likely), `1,4,16`, or with weights, `1=0.9,128=0.1`. Raises ValueError for another."""
        if found := _RANGE.fullmatch(text):
            first, last = int(found[1]), int(found[2])
            weights = dict.fromkeys(range(first, last + 1), 1.0) if last <= _MOST_IMAGES else {}
        else:
            weights = _weights(text)
        if not weights or max(weights) > _MOST_IMAGES or not sum(weights.values()):
            raise ValueError(
                f"{text!r} is no number of images: give N, FIRST:LAST, a list N,N,... or one with weights, "
                f"N=WEIGHT,N=WEIGHT,...; each N at most {_MOST_IMAGES}"
            )
        total = sum(weights.values())
        return cls({count: weight / total for count, weight in weights.items()})

    def draw(self, random: np.random.Generator) -> int:
        """One of them."""
        return int(random.choice(list(self.probabilities), p=list(self.probabilities.values())))


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What one client shows and asks."""

    number: int
    pictures: tuple[int, ...]  # numbers of pictures, shown with the first question
    questions: tuple[str, ...]  # one for each turn
    is_shared: bool = False  # shows the sequence of pictures that others show too


@dataclasses.dataclass(frozen=True)
class Workload:
    """What all conversations are drawn from."""

    image_counts: ImageCounts
    prompts: Prompts
    seed: int = 0
    turns: int = 1
    shared: float = 0.0  # share of the conversations that show the same sequence of pictures

    def conversations(self) -> Iterator[Conversation]:
        """Endlessly many. Without the shared ones, no two show the same picture."""
        shared_count = self.image_counts.draw(np.random.default_rng([_SHARED, self.seed]))
        shared = tuple(range(shared_count))
        number, first = 0, shared_count
        while True:
            random = np.random.default_rng([_CONVERSATION, self.seed, number])
            is_shared, count = random.random() < self.shared, self.image_counts.draw(random)
            own = () if is_shared else tuple(range(first, first + count))
            yield Conversation(number, shared if is_shared else own, self.prompts.script(number, self.turns), is_shared)
            number, first = number + 1, first + len(own)


def _weights(text: str) -> dict[int, float]:
    """The list's counts; nothing where it is no such list. A count that is there twice has both weights."""
    weights: dict[int, float] = {}
    for part in text.split(","):
        found = _CHOICE.fullmatch(part.strip())
        if not found:
            return {}
        weights[int(found[1])] = weights.get(int(found[1]), 0.0) + float(found[2] or 1)
    return weights
