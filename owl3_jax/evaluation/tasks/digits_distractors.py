"""Distractor Resistance on handwritten digits: multiple choice about one image among N-1 distractors, by CircularEval.

After the paper (arXiv 2408.04840); `distractor_resistance` is the same on MMBench, as in the paper. The target is also named by
its colour, not only by the paper's index. Decided here:

* Question q has one target (picture and colour) and four options, the right digit and three wrong ones, drawn from the
  generator keyed by (seed, task, q): every N and both namings ask the same questions.
* Draw d of N takes N-1 other held-out pictures and the target's place X, uniform in 1..N, from the generator keyed by
  (seed, task, q, N, d). No distractor has the target's colour; it may show the target's digit.
* Samples of a question: its options in all four rotations, for each draw. N = 1 has no distractors: one draw.
* The options follow the question on lines of their own (`A. 3`); there is no hint and no instruction after them.
* The choice is the last option letter that stands alone in the answer; an answer without one is wrong.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from owl3_jax.data.digits.questions import draw_options
from owl3_jax.evaluation.by_images import circular_by_images, counts_of, curves_of, heat_map
from owl3_jax.evaluation.curves import ChanceLine, draw_curves
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.evaluation.scores import LETTERS, parse_choice
from owl3_jax.evaluation.task import About, Task
from owl3_jax.evaluation.tasks import digits_prompts as digits
from owl3_jax.evaluation.tasks.distractor_resistance import rotations

NUM_OPTIONS = 4
_QUESTIONS = 64  # unless the settings say how many
_TASK = 1  # keeps random draws apart from those of other tasks


def read(data: DataRoot) -> list[Question]:
    """All questions: by colour, then by index; each by rising number of images; then draw by draw, rotation by rotation.

    Raises ConfigError when a question needs more pictures than are held out.
    """
    config = data.settings
    digits.check_counts("distractor_images", config.distractor_images)
    return [
        question
        for naming in digits.NAMINGS
        for images in sorted(set(config.distractor_images))
        for number in range(config.distractor_questions or _QUESTIONS)
        for question in _samples(config.seed, naming, images, number, config.distractor_draws if images > 1 else 1)
    ]


def judge(question: Question, answer: str) -> Judged:
    """The last letter that stands alone."""
    option = parse_choice(answer, question.options)
    letter = "" if option is None else LETTERS[option]
    return Judged(float(letter == question.gold), float(letter == question.gold), letter, letter)


def figures(answered: Sequence[Answered]) -> dict[str, Figure]:
    """Circular and plain accuracy against the number of images, for each naming; and by the target's place."""
    counts = counts_of(answered)
    samples = {count: _samples_each(answered, count) for count in counts}
    scores = circular_by_images(answered)["official"]
    note = (
        f"each question is asked in {NUM_OPTIONS} option orders and with {max(samples.values()) // NUM_OPTIONS} sets of "
        "distractors\ncircular: a question counts when all its samples are right (bands: 95 % intervals)"
    )
    chances = [
        ChanceLine("chance, plain\n25 %", counts, [1 / NUM_OPTIONS] * len(counts)),
        ChanceLine("chance, circular", counts, [NUM_OPTIONS ** -samples[count] for count in counts]),
    ]
    title = "Distractor Resistance on held-out handwritten digits"
    return {
        "digits_distractors.png": draw_curves(title, note, curves_of(scores), chances, digits.TRAINED_IMAGES),
        "digits_distractors_places.png": heat_map([each for each in answered if each.question.split == "by index"], title),
    }


def _samples_each(answered: Sequence[Answered], count: int) -> int:
    groups = [each.question.group for each in answered if each.question.facts["images"] == count]
    return len(groups) // len(set(groups))


def _samples(seed: int, naming: digits.Naming, images: int, number: int, draws: int) -> Iterator[Question]:
    rng = np.random.default_rng([seed, _TASK, number])
    target = digits.draw_target(rng)
    options = draw_options(rng, target.digit)
    scenes = [
        digits.draw_scene(np.random.default_rng([seed, _TASK, number, images, draw]), target, images) for draw in range(draws)
    ]
    for sample, (scene, order) in enumerate(itertools.product(scenes, rotations(options))):
        yield digits.make_question(scene, naming, order, name=f"{number}/{sample}", group=str(number))


DIGITS_DISTRACTORS = Task(
    "digits_distractors",
    About("Handwritten digits, Distractor Resistance (no files needed)", metric="circular_accuracy"),
    read,
    judge,
    circular_by_images,
    digits.open_picture,
    figures,
    crop=None,
    max_new_tokens=digits.MAX_NEW_TOKENS,
)
