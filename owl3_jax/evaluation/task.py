"""The protocol that a benchmark implements. Each benchmark is one file in `owl3_jax.evaluation.tasks`."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from matplotlib.figure import Figure

from owl3_jax.config import JsonTree
from owl3_jax.evaluation.contact_sheet import Card
from owl3_jax.processing.chat import Message
from owl3_jax.processing.images import ImageSource
from owl3_jax.processing.video import VideoSource

Question = TypeVar("Question")
Score = TypeVar("Score")


@dataclasses.dataclass(frozen=True)
class Prompt(Generic[Question]):
    """What the model is asked, and what the task has to know to score the answer."""

    id: str  # unique within the task
    messages: list[Message]
    question: Question
    images: Sequence[ImageSource] = ()
    videos: Sequence[VideoSource] = ()


@dataclasses.dataclass(frozen=True)
class Scored(Generic[Question, Score]):
    """An answer with its score."""

    question: Question
    answer: str
    score: Score


class Summary(NamedTuple):
    """What an evaluation shows of a task."""

    report: JsonTree  # blocks of report.json; one that several tasks have is the same in all
    table: str  # to print, without a newline at the end
    figures: dict[str, Figure]  # by file name


@runtime_checkable
class Task(Protocol[Question, Score]):
    """A benchmark. Its prompts are asked in any order and in any batches; an answer is text without surrounding whitespace."""

    @property
    def name(self) -> str:
        """Its name in `eval.tasks`."""
        ...

    def prompts(self) -> Iterable[Prompt[Question]]:
        """All prompts, the same ones at each call. They are held in memory a few at a time."""
        ...

    def score(self, question: Question, answer: str) -> Score:
        """The score of one answer."""
        ...

    def summarize(self, scored: Sequence[Scored[Question, Score]]) -> Summary:
        """The scores of all answers, which come in the order of the prompts."""
        ...

    def showcase(self) -> Sequence[Sequence[Prompt[Question]]]:
        """Groups of prompts of one kind each, of which the contact sheet shows one or none."""
        ...

    def card(self, prompt: Prompt[Question], answer: str) -> Card:
        """A prompt and its answer as the contact sheet and the report show them."""
        ...


AnyTask = Task[Any, Any]  # Any: tasks in one list have questions and scores of different types
AnyPrompt = Prompt[Any]  # Any: as above
