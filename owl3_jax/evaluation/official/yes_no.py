"""Answers that are yes or no."""

from collections.abc import Iterable
from typing import NamedTuple

from owl3_jax.evaluation.official.vqa import first_part


def yes_or_no(answer: str) -> str:
    """What of an answer is compared: before the first `.` and the first `,`, in lower case. POPE, NLVR2."""
    return first_part(answer.strip(), ".,").strip().lower()


class YesNo(NamedTuple):
    """POPE's counts. Officially, answers that are neither are in no score but `yes_ratio`."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    unclear_yes: int  # neither yes nor no, where yes would be right
    unclear_no: int

    @classmethod
    def of(cls, answers: Iterable[tuple[str, str]]) -> "YesNo":
        """Counts pairs of an answer and the gold answer. Raises ValueError for a gold answer that is not yes or no."""
        counts = dict.fromkeys(cls._fields, 0)
        for answer, gold in answers:
            if gold not in ("yes", "no"):
                raise ValueError(f"a gold answer must be yes or no, got {gold!r}")
            found = yes_or_no(answer)
            if found not in ("yes", "no"):
                counts[f"unclear_{gold}"] += 1
            else:
                counts[f"{'true' if found == gold else 'false'}_{'positive' if found == 'yes' else 'negative'}"] += 1
        return cls(**counts)

    @property
    def accuracy(self) -> float:
        """Of the answers that are yes or no; 0 where there are none, as for the other scores."""
        return _ratio(self.true_positive + self.true_negative, sum(self) - self.unclear_yes - self.unclear_no)

    @property
    def strict_accuracy(self) -> float:
        """Of all answers."""
        return _ratio(self.true_positive + self.true_negative, sum(self))

    @property
    def precision(self) -> float:
        """Share of right ones among answers of yes. The released code divides by zero where there are none."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of answers of yes among those that are yes or no to questions whose gold answer is yes."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def strict_recall(self) -> float:
        """Share of answers of yes to all questions whose gold answer is yes."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative + self.unclear_yes)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _harmonic_mean(self.precision, self.recall)

    @property
    def strict_f1(self) -> float:
        """Harmonic mean of precision and the strict recall."""
        return _harmonic_mean(self.precision, self.strict_recall)

    @property
    def yes_ratio(self) -> float:
        """Share of yes among all answers."""
        return _ratio(self.true_positive + self.false_positive, sum(self))


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
