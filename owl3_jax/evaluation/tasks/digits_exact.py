"""Exact match: the model answers freely which digit is in the image that the question names.

Question q for N images is drawn from the generator keyed by (seed, task, N, q): a target in a random colour, N-1 distractors
and the target's place. Both ways of naming the target are asked about the same pictures. An answer counts when all of its
text is right (`red 7`, or `Image 3: 7` by index), so chance is guessing one digit in ten.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from owl3_jax.evaluation.by_images import accuracy_by_images, counts_of, curves_of
from owl3_jax.evaluation.curves import ChanceLine, draw_curves
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.scores import is_exact_match
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import digits_prompts as digits

CHANCE = 0.1
_TASK = 0  # keeps random draws apart from those of other tasks


def read(data: DataRoot) -> list[Question]:
    """All questions: by colour, then by index; each by rising number of images.

    Raises ConfigError when a question needs more pictures than are held out.
    """
    config = data.settings
    digits.check_counts("exact_match_images", config.exact_match_images)
    return [
        digits.make_question(_scene(config.seed, images, number), naming, name=str(number))
        for naming in digits.NAMINGS
        for images in sorted(set(config.exact_match_images))
        for number in range(config.questions)
    ]


def judge(question: Question, answer: str) -> Judged:
    """Whether all of the answer is right, whitespace aside."""
    right = float(is_exact_match(answer, question.gold or ""))
    return Judged(right, right, answer, answer)


def figures(answered: Sequence[Answered]) -> dict[str, Figure]:
    """Accuracy against the number of images, one line for each naming of the target."""
    counts = counts_of(answered)
    chance = ChanceLine("chance\n10 %", counts, [CHANCE] * len(counts))
    note = f"{len(answered) // (2 * len(counts))} questions a point; bands: 95 % intervals"
    curves = curves_of(accuracy_by_images(answered)["official"])
    return {
        "digits_exact.png": draw_curves(
            "Exact match on held-out handwritten digits", note, curves, [chance], digits.TRAINED_IMAGES
        )
    }


def _scene(seed: int, images: int, number: int) -> digits.Scene:
    rng = np.random.default_rng([seed, _TASK, images, number])
    return digits.draw_scene(rng, digits.draw_target(rng), images)


DIGITS_EXACT = Task(
    "digits_exact",
    About("Handwritten digits, exact match (no files needed)", aliases=("exact_match",)),
    read,
    judge,
    accuracy_by_images,
    digits.open_picture,
    figures,
    crop=None,
    max_new_tokens=digits.MAX_NEW_TOKENS,
)
