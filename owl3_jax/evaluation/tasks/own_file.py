"""A JSON Lines file of the user's own: `file:PATH`. Multiple choice, or short answers.

    {"question": "What is this?", "image": "cat.jpg", "options": ["a cat", "a dog"], "answer": "A"}
    {"question": "Which is older, <image> or <image>?", "images": ["1.jpg", "2.jpg"], "answer": ["the first", "first"]}
    {"question": "What happens next?", "video": "film.mp4", "options": {"A": "rain", "B": "snow"}, "answer": "snow"}
    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "a cat"}], ...}

`id` and `split` are optional. Paths start at the file's folder. Images and videos without a place in the question come before
it. Conversations, as training reads them, are asked for the last answer, which is the right one.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from owl3_jax.config import Json
from owl3_jax.evaluation.data_root import DataError, DataRoot, Row
from owl3_jax.evaluation.multiple_choice import LETTER, WORD, Way, judge_letters, letter_of, lettered, option_texts
from owl3_jax.evaluation.official.choices import mmbench
from owl3_jax.evaluation.official.vqa import evalai
from owl3_jax.evaluation.question import Excerpt, Judged, Question
from owl3_jax.evaluation.scores import LETTERS
from owl3_jax.evaluation.task import About, Task
from owl3_jax.host import storage

FRAMES = 16
PREFIX = "file:"
_TAGS = {"image": ("<image>", "<|image|>"), "video": ("<video>", "<|video|>")}


def make_task(name: str) -> Task:
    """The task of `file:PATH`."""
    path = name.removeprefix(PREFIX)
    about = About(f"{path} (images and videos beside it)", (path,), "your own file")
    return Task(name, about, lambda data: read(data, path), judge, frames=FRAMES, crop=None)


def read(data: DataRoot, path: str) -> list[Question]:
    """Its questions. The path starts at the working directory. Raises DataError."""
    place = path if storage.is_url(path) else str(Path(path).expanduser().absolute())
    questions, ids = [], set[str]()
    for number, row in enumerate(data.rows(place)):
        question = _question(row, str(row.get("id", number)), f"record {number} of {path}")
        if question.id in ids:
            raise DataError(f"record {number} of {path} has the id {question.id!r}, as one before it; ids must differ")
        ids.add(question.id)
        questions.append(question)
    if not questions:
        raise DataError(f"{path} has no records")
    return questions


def judge(question: Question, answer: str) -> Judged:
    """Options are read as MMBench's; short answers are compared as EvalAI normalises them, empty ones are wrong."""
    if question.options:
        return judge_letters(question, answer, mmbench(answer, question.options))
    said = evalai(answer)
    right = float(bool(said) and said in {evalai(gold) for gold in question.facts["golds"]})
    return Judged(right, right, said, said)


def _question(row: Row, name: str, place: str) -> Question:
    asked, answer = _turn(row, place)
    images, videos = (_media(row, kind, place) for kind in ("image", "video"))
    bare = asked
    for kind, media in (("image", images), ("video", videos)):
        tag, placeholder = _TAGS[kind]
        asked = asked.replace(tag, placeholder)
        bare = bare.replace(tag, "").replace(placeholder, "")
        if placeholder not in asked and media:
            asked = f"{placeholder}\n" * len(media) + asked
        if asked.count(placeholder) != len(media):
            raise DataError(f"{place} has {len(media)} {kind}s and {asked.count(placeholder)} {tag} in its question")
    options = _options(row, place)
    if options:
        asked = f"{asked}\nOptions:\n{lettered(options)}\n{LETTER}"
    elif "question" in row:
        asked = f"{asked}\n{WORD}"
    golds = [str(gold) for gold in (answer if isinstance(answer, list) else [answer])]
    if not golds or not golds[0]:
        raise DataError(f"{place} has no answer")
    return Question(
        name,
        asked,
        _gold(row, answer, options, place) if options else golds[0],
        images,
        tuple(Excerpt(video, FRAMES) for video in videos),
        options,
        split=str(row.get("split") or ""),
        facts={"question": bare.strip()} if options else {"golds": golds},
    )


def _turn(row: Row, place: str) -> tuple[str, Json]:
    """The question and the right answer."""
    if "question" in row:
        if not isinstance(row["question"], str) or row.get("answer") is None:
            raise DataError(f"{place} needs a question that is a text, and an answer")
        return row["question"], row["answer"]
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"{place} has neither a question nor a conversation; it has {', '.join(map(repr, row))}")
    contents = [str(turn.get("content", turn.get("value", ""))) for turn in turns]
    roles = [str(turn.get("role", turn.get("from", ""))) for turn in turns]
    if len(turns) > 2 or roles[0] not in ("user", "human"):
        raise DataError(f"{place}: only conversations of one question and one answer can be asked, this has {len(turns)} turns")
    return contents[0], contents[1]


def _media(row: Row, kind: str, place: str) -> tuple[str, ...]:
    value = row.get(f"{kind}s", row.get(kind))
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in listed):
        raise DataError(f"{place}: its {kind}s must be paths, got {str(value)[:60]}")
    return tuple(storage.join(storage.parent(row["#"].partition("#")[0]), each) for each in listed)


def _options(row: Row, place: str) -> tuple[str, ...]:
    """The options' texts; letters that the data has before them, in the order of the alphabet, are taken away."""
    options = row.get("options", row.get("choices"))
    if options is None:
        return ()
    texts = option_texts(list(options.values()) if isinstance(options, Mapping) else options, place)
    marked = [re.fullmatch(r"([A-Z])[.)]\s+(.+)", text, re.DOTALL) for text in texts]
    if [match and match[1] for match in marked] == list(LETTERS[: len(texts)]):
        return tuple(match[2] for match in marked if match)
    return texts


def _gold(row: Row, answer: Json, options: tuple[str, ...], place: str) -> str:
    """The letter of the right option: by the key or letter that the data gives it, or by its text.

    A number is the option of that text, or the one at that place from 0, but not where these are two.
    """
    given = row.get("options", row.get("choices"))
    keys = list(given) if isinstance(given, Mapping) else []
    if answer in keys:
        return LETTERS[keys.index(answer)]
    if keys:
        return letter_of(answer, options, place, ("text",))
    if isinstance(answer, int) and not isinstance(answer, bool):
        ways: tuple[Way, ...] = ("place", "text")
        found = {letter_of(answer, options, place, (way,)) for way in ways if _fits(answer, options, way)}
        if len(found) > 1:
            raise DataError(
                f"{place}: its answer {answer} is the text of one option and the place of another; write its letter"
            )
        return found.pop() if found else letter_of(answer, options, place, ("text",))
    return letter_of(answer, options, place, ("letter", "text"))


def _fits(answer: int, options: tuple[str, ...], way: Way) -> bool:
    return 0 <= answer < len(options) if way == "place" else str(answer) in options
