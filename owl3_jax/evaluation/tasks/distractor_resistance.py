"""Distractor Resistance: multiple choice about one image among N-1 others of the same benchmark, by CircularEval.

Source: arXiv 2408.04840, on MMBench's development set; its code was not released. The prompt is the paper's:
`Image 1: <|image|> Image 2: <|image|> ... Image N: <|image|>. In Image X, {question}`, and a question counts when all of its
samples, over orders of its options and over distractors, are right. Decided here, where the paper is silent:

* The options follow on lines of their own (`A. cat`), then the instruction of the released MMBench task. A hint of the
  benchmark comes before the question, after `In Image X,`.
* Draw d of N for question q takes N-1 of the benchmark's other images, all different, and the target's place X, uniform in
  1..N, from the generator keyed by (seed, q, N, d). Two draws (`eval.distractor_draws`); one where N is 1.
* The options' orders are all their rotations.
* Answers are read as the benchmark reads them. An N that needs more images than there are is left out.
* N is 1, 5, 10, 20, 50, 100, 200 and 400 (`eval.distractor_images`), and all questions are asked
  (`eval.distractor_questions`).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from owl3_jax.config import ConfigError, EvalConfig
from owl3_jax.evaluation.by_images import circular_by_images, counts_of, curves_of, heat_map
from owl3_jax.evaluation.curves import ChanceLine, Curve, draw_curves
from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.multiple_choice import LETTER, lettered
from owl3_jax.evaluation.paper import DISTRACTOR_RESISTANCE
from owl3_jax.evaluation.question import Answered, Question
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task

NAME = "distractor_resistance"
_TASK = 2  # keeps random draws apart from those of other tasks
_PAPER_COLOURS = ("#777777", "#bb8833")
_T = TypeVar("_T")


def on_benchmark(base: Task, name: str) -> Task:
    """Distractor Resistance on a multiple-choice benchmark about single images."""
    return dataclasses.replace(
        base,
        name=name,
        about=About(
            f"Distractor Resistance on {base.about.title}",
            base.about.needs,
            base.about.source,
            metric="circular_accuracy",
            aliases=(f"{NAME}:{base.name}",),
        ),
        questions=lambda data: read(data, base),
        score=circular_by_images,
        figures=lambda answered: figures(answered, base.about.title),
        submission=None,
        crop=False,  # several images are not cropped
    )


def read(data: DataRoot, base: Task) -> list[Question]:
    """All samples by rising N, then question by question, draw by draw, rotation by rotation.

    Raises ConfigError when the benchmark is none of questions with options about single images.
    """
    config, asked = data.settings, list(_one_of_each(base.questions(data)))
    images = sorted({question.images[0] for question in asked if question.images})
    unsuitable = [each.id for each in asked if len(each.images) != 1 or len(each.options) < 2 or each.gold is None]
    if unsuitable or not images or any("question" not in question.facts for question in asked):
        raise ConfigError(f"{NAME} needs multiple choice about single images with known answers, which {base.name} is not")
    chosen = _choose(asked, config)
    counts = [count for count in sorted(set(config.distractor_images)) if count <= len(images)]
    if not counts:
        raise ConfigError(f"eval.distractor_images names no number of images up to {len(images)}, the images of {base.name}")
    numbers = {name: number for number, name in enumerate(images)}
    return [
        sample
        for count in counts
        for question in chosen
        for sample in _samples(config, question, images, numbers[question.images[0]], count)
    ]


def rotations(options: Sequence[_T]) -> list[tuple[_T, ...]]:
    """The options in all orders that CircularEval asks: each is once at each letter."""
    return [(*options[start:], *options[:start]) for start in range(len(options))]


def figures(answered: Sequence[Answered], title: str) -> dict[str, Figure]:
    """Accuracy by N beside the paper's points, and by N and the target's place."""
    scores, counts = circular_by_images(answered)["official"], counts_of(answered)
    curves = curves_of(scores)
    for colour, (label, points) in zip(_PAPER_COLOURS, DISTRACTOR_RESISTANCE.items(), strict=True):
        shares = [value / 100 for value in points.values()]
        curves.append(Curve(f"{label}, circular, MMBench (paper)", colour, list(points), shares, dashed=True))
    options = min(len(each.question.options) for each in answered)
    chance = ChanceLine(f"chance, plain\n{100 / options:.0f} %", counts, [1 / options] * len(counts))
    note = "circular: a question counts when all of its samples are right (bands: 95 % intervals)"
    return {
        "distractor_resistance.png": draw_curves(f"Distractor Resistance on {title}", note, curves, [chance], None),
        "distractor_resistance_places.png": heat_map(answered, f"Distractor Resistance on {title}"),
    }


def _one_of_each(questions: Sequence[Question]) -> Iterator[Question]:
    """The first of the rows that are one question with its options in several orders."""
    groups = set()
    for question in questions:
        if question.group and question.group in groups:
            continue
        groups.add(question.group)
        yield question


def _choose(questions: Sequence[Question], config: EvalConfig) -> list[Question]:
    count = config.distractor_questions
    if not count or count >= len(questions):
        return list(questions)
    places = np.random.default_rng([config.seed, _TASK]).choice(len(questions), count, replace=False)
    return [questions[place] for place in sorted(places.tolist())]


def _samples(config: EvalConfig, question: Question, images: Sequence[str], own: int, count: int) -> Iterator[Question]:
    right = LETTERS.index(question.gold or "")
    others = [number for number in range(len(images)) if number != own]
    for draw in range(config.distractor_draws if count > 1 else 1):
        rng = np.random.default_rng([config.seed, _TASK, own, len(question.text), count, draw])
        shown = [images[number] for number in rng.choice(others, count - 1, replace=False).tolist()]
        target = int(rng.integers(count))
        shown.insert(target, question.images[0])
        listed = " ".join(f"Image {number}: <|image|>" for number in range(1, count + 1))
        hint = f"{question.facts['hint']}\n" if question.facts.get("hint") else ""
        for turn, order in enumerate(rotations(range(len(question.options)))):
            options = tuple(question.options[place] for place in order)
            yield Question(
                id=f"{question.id}/{count}/{draw}/{turn}",
                text=f"{listed}. In Image {target + 1}, {hint}{question.facts['question']}\n{lettered(options)}\n{LETTER}",
                gold=LETTERS[order.index(right)],
                images=tuple(shown),
                options=options,
                group=f"{question.id}/{count}",
                target=target,
                facts={"images": count},
            )
