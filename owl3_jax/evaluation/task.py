"""What a benchmark is: facts, and functions of its data and of answers. Each is one file in `owl3_jax.evaluation.tasks`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from owl3_jax.evaluation.data_root import DataRoot
from owl3_jax.evaluation.metrics import Scores, accuracy
from owl3_jax.evaluation.question import Answered, Judged, Question
from owl3_jax.processing.images import ImageSource


class About(NamedTuple):
    """What `--tasks list` prints of a benchmark."""

    title: str
    needs: tuple[str, ...] = ()  # patterns of files below the data root; ` | ` separates alternatives
    source: str = ""  # where to get them
    paper: str = ""  # its column in the paper's tables (`owl3_jax.evaluation.paper`)
    metric: str = "accuracy"  # the score that this column reports; "" where a server or a judge gives it
    aliases: tuple[str, ...] = ()  # other names, those of the released code and of lmms-eval among them


def no_figures(answered: Sequence[Answered]) -> dict[str, Figure]:
    """Of a task that draws nothing."""
    return {}


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark. Its questions are asked in any order and in any batches; an answer is text without whitespace around it."""

    name: str
    about: About
    questions: Callable[[DataRoot], Sequence[Question]]  # all, the same ones at each call; raises DataError
    judge: Callable[[Question, str], Judged]  # how an answer is read
    score: Callable[[Sequence[Answered]], Scores] = accuracy  # of at least one answer, in the order of the questions
    image: Callable[[DataRoot, str], ImageSource] = DataRoot.image  # of a name that a question has; raises DataError
    figures: Callable[[Sequence[Answered]], Mapping[str, Figure]] = no_figures  # by the names of their files
    submission: Callable[[Sequence[Answered]], Mapping[str, bytes]] | None = None  # files for a server or a judge
    judge_prompt: Callable[[Question, str], str] | None = None  # asks another model for a score from 0 to 1
    frames: int | None = None  # of each video; None: a task without videos
    crop: bool | None = False  # whether images are seen in crops too; None: images and videos as the checkpoint was trained
    max_new_tokens: int = 100
