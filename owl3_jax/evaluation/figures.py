"""The two figures of an evaluation, from its scores."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from owl3_jax.evaluation import distractor_resistance, exact_match
from owl3_jax.evaluation.curves import COLORS, ChanceLine, Curve, draw_curves
from owl3_jax.evaluation.distractor_resistance import DistractorResistance
from owl3_jax.evaluation.exact_match import ExactMatch
from owl3_jax.evaluation.prompts import NAMINGS, Naming
from owl3_jax.evaluation.report import TRAINED_IMAGES, by_naming, percent


def exact_match_figure(points: Sequence[ExactMatch]) -> Figure:
    """Accuracy against the number of images, one line for each naming of the target."""
    curves = [_exact_match_curve(by_naming(points, naming), naming) for naming in NAMINGS]
    chance = ChanceLine(
        f"chance\n{percent(exact_match.CHANCE)}", curves[0].images, [exact_match.CHANCE] * len(curves[0].images)
    )
    note = f"{points[0].questions} questions a point; bands: 95 % intervals"
    return draw_curves("Exact match on held-out handwritten digits", note, curves, [chance], TRAINED_IMAGES)


def distractor_resistance_figure(points: Sequence[DistractorResistance]) -> Figure:
    """Circular and plain accuracy against the number of images, for each naming of the target."""
    curves = [curve for naming in NAMINGS for curve in _distractor_curves(by_naming(points, naming), naming)]
    most = max(points, key=lambda point: point.samples_per_question)
    note = (
        f"{most.questions} questions a point, each asked in {distractor_resistance.NUM_OPTIONS} option orders and with "
        f"{most.samples_per_question // distractor_resistance.NUM_OPTIONS} sets of distractors\n"
        "circular: a question counts when all its samples are right (bands: 95 % intervals)"
    )
    chances = _distractor_chances(by_naming(points, NAMINGS[0]))
    return draw_curves("Distractor Resistance on held-out handwritten digits", note, curves, chances, TRAINED_IMAGES)


def _exact_match_curve(points: Sequence[ExactMatch], naming: Naming) -> Curve:
    return Curve(
        label=f"asked by {naming}",
        color=COLORS[naming],
        images=[point.images for point in points],
        accuracy=[point.accuracy for point in points],
        interval=[point.interval_95 for point in points],
    )


def _distractor_curves(points: Sequence[DistractorResistance], naming: Naming) -> list[Curve]:
    images = [point.images for point in points]
    circular = [point.circular_accuracy for point in points]
    plain = [point.plain_accuracy for point in points]
    interval = [point.circular_interval_95 for point in points]
    return [
        Curve(f"asked by {naming}, circular", COLORS[naming], images, circular, interval),
        Curve(f"asked by {naming}, plain", COLORS[naming], images, plain, dashed=True),
    ]


def _distractor_chances(points: Sequence[DistractorResistance]) -> list[ChanceLine]:
    images = [point.images for point in points]
    circular = [point.circular_chance for point in points]
    plain = distractor_resistance.CHANCE
    return [
        ChanceLine(f"chance, plain\n{percent(plain)}", images, [plain] * len(images)),
        ChanceLine(f"chance, circular\n{percent(circular[-1])}", images, circular),
    ]
