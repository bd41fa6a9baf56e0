"""One evaluation of a trained model: its questions, answers and scores, and the files that show them."""

import datetime as dt
import functools
import itertools
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from owl3_jax.config import Config, ConfigError, EvalConfig
from owl3_jax.data import load_tokenizer
from owl3_jax.evaluation import distractor_resistance, exact_match, samples
from owl3_jax.evaluation.contact_sheet import draw_contact_sheet
from owl3_jax.evaluation.curves import save_figure
from owl3_jax.evaluation.figures import distractor_resistance_figure, exact_match_figure
from owl3_jax.evaluation.progress import Progress
from owl3_jax.evaluation.prompts import NAMINGS, QuestionSet
from owl3_jax.evaluation.report import Scores, describe, make_report, write_report
from owl3_jax.evaluation.runner import Generate, answer_prompts
from owl3_jax.processing.processor import Processor

SHEET_NOTE = "A question of each of several sets, chosen without a look at the answers; the image asked for is framed"


def evaluate(config: Config, generate: Generate, directory: Path, *, rows_divisor: int = 1) -> Scores:
    """Scores a model, writes the results into `directory`, and prints the scores and where the files lie.

    Everything but the `run` block of report.json follows from the model and the settings alone.

    Args:
        generate: the model: its answers to a numpy batch.
        rows_divisor: the rows of a batch must be a multiple of this.

    Raises:
        ConfigError: the settings ask for what the data or the model does not have.
        UnreadableImage: an image cannot be decoded.
    """
    start = time.monotonic()
    if config.data.dataset != "digits":
        raise ConfigError(f"evaluation asks about the digits data set, but data.dataset is {config.data.dataset!r}")
    sets = make_question_sets(config.eval)
    answers = answer_sets(sets, generate, config, rows_divisor)
    scores = score_sets(sets, answers)
    shown = samples.choose(sets, answers, config.eval.samples_shown)
    print(describe(scores))
    for path in write_results(scores, shown, config, directory, describe_run(time.monotonic() - start)):
        print(path)
    return scores


def make_question_sets(config: EvalConfig) -> list[QuestionSet]:
    """All that is asked: exact match, then Distractor Resistance; each by colour, then by index."""
    counts = {exact_match: config.exact_match_images, distractor_resistance: config.distractor_images}
    return [
        task.make_questions(config, naming, images)
        for task, naming in itertools.product(counts, NAMINGS)
        for images in sorted(set(counts[task]))
    ]


def answer_sets(sets: Sequence[QuestionSet], generate: Generate, config: Config, rows_divisor: int) -> list[list[str]]:
    """The answers to the prompts of each set; all sets share the batches."""
    processor = Processor(load_tokenizer(config.data), config.model.vision.image_size)
    prompts = [prompt for questions in sets for prompt in questions.prompts]
    with Progress(len(prompts)) as progress:
        answer = functools.partial(answer_prompts, rows_divisor=rows_divisor, advance=progress.advance)
        answers = iter(answer(prompts, processor, generate, config))
    return [list(itertools.islice(answers, len(questions.prompts))) for questions in sets]


def score_sets(sets: Sequence[QuestionSet], answers: Sequence[Sequence[str]]) -> Scores:
    """A point for each set."""
    pairs = list(zip(sets, answers, strict=True))
    return Scores(
        [exact_match.score(questions, given) for questions, given in pairs if questions.task == "exact_match"],
        [
            distractor_resistance.score(questions, given)
            for questions, given in pairs
            if questions.task == "distractor_resistance"
        ],
    )


def write_results(
    scores: Scores, shown: Sequence[samples.Shown], config: Config, directory: Path, run: dict[str, Any]
) -> list[Path]:
    """Writes the report and the pictures into `directory`; returns their paths."""
    report = make_report(scores, [samples.to_record(sample) for sample in shown], config.eval)
    sheet = draw_contact_sheet([samples.to_card(sample) for sample in shown], SHEET_NOTE)
    return [
        write_report(report, run, directory / "report.json"),
        save_figure(exact_match_figure(scores.exact_match), directory / "exact_match.png"),
        save_figure(distractor_resistance_figure(scores.distractor_resistance), directory / "distractor_resistance.png"),
        save_figure(sheet, directory / "samples.png"),
    ]


def describe_run(seconds: float) -> dict[str, Any]:
    """What differs between runs that score the same."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
