"""What is asked, what is right, and how an answer was read: all that a benchmark says about one sample, as plain values."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from owl3_jax.config import Json, JsonTree
from owl3_jax.processing.chat import IMAGE, VIDEO

Reading = Literal["official", "strict"]
READINGS: tuple[Reading, ...] = ("official", "strict")


class Excerpt(NamedTuple):
    """A video as a benchmark asks about it."""

    file: str  # below the data root, or anywhere; a file, or a folder of images
    frames: int
    start: float | None = None  # seconds; None: the whole video
    end: float | None = None
    folder_fps: float | None = None  # of a folder of images
    share: tuple[int, ...] = ()  # other numbers of frames that are asked about: all are taken from those of the largest


@dataclasses.dataclass(frozen=True)
class Question:
    """One sample of a benchmark. Everything in it can be written as JSON; no image is opened."""

    id: str  # unique within the task; as in the task's own file
    text: str  # of the user, with one placeholder for each image and video
    gold: str | None = None  # the right answer: a letter, or a text; None: a server or a judge decides
    images: tuple[str, ...] = ()  # names of images, see `DataRoot.image`
    videos: tuple[Excerpt, ...] = ()
    options: tuple[str, ...] = ()  # of a multiple choice, without their letters
    split: str = ""  # a part of the benchmark with a score of its own
    group: str = ""  # questions of one group are right only together
    target: int | None = None  # which of the images is asked about, if it is one of several
    facts: Mapping[str, Json] = dataclasses.field(default_factory=dict)  # what else the task's scores need

    def __post_init__(self) -> None:
        for placeholder, media in ((IMAGE, self.images), (VIDEO, self.videos)):
            if self.text.count(placeholder) != len(media):
                raise ValueError(
                    f"question {self.id}: its text has {self.text.count(placeholder)} {placeholder}, but there are "
                    f"{len(media)} of them; a text of the data may contain the placeholder itself"
                )

    def to_json(self) -> JsonTree:
        """Its fields, without those that are empty."""
        tree = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tree["videos"] = [video._asdict() for video in self.videos]
        return {name: value for name, value in tree.items() if value not in (None, "", (), [], {})}

    @classmethod
    def from_json(cls, tree: JsonTree) -> "Question":
        """The question that `to_json` wrote. Raises TypeError or ValueError for something else."""
        videos = [Excerpt(**{**video, "share": tuple(video.get("share", ()))}) for video in tree.get("videos", ())]
        lists = {name: tuple(tree.get(name, ())) for name in ("images", "options")}
        return cls(**{"text": "", **tree, **lists, "videos": tuple(videos)})


class Judged(NamedTuple):
    """An answer as it is read, and its share of being right, 0 to 1."""

    official: float
    strict: float
    parsed: str = ""  # what the released code compares
    strictly: str = ""  # what the strict reading compares

    def of(self, reading: Reading) -> float:
        """The share by a reading."""
        return self.official if reading == "official" else self.strict


def unscored(parsed: str) -> Judged:
    """An answer that a server or a judge scores, which have what is right: what they get."""
    return Judged(0.0, 0.0, parsed, parsed)


class Answered(NamedTuple):
    """A question with its answer."""

    question: Question
    answer: str
    judged: Judged
    error: str = ""  # why there is no answer: it counts as wrong


def distinct(names: Sequence[str]) -> list[str]:
    """Names of which those that repeat are told apart: `x`, `y`, `x` become `x/0`, `y`, `x/1`."""
    counts, seen, taken = Counter(names), Counter[str](), set(names)
    found = []
    for name in names:
        if counts[name] > 1:
            unique = f"{name}/{seen[name]}"
            seen[name] += 1
            while unique in taken:  # another row may be called so
                unique = f"{name}/{seen[name]}"
                seen[name] += 1
            found.append(unique)
        else:
            found.append(name)
    return found
