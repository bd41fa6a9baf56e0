"""Short answers: the normaliser of the VQA evaluator, its soft accuracy, and what EvalAI and GQA make of an answer."""

import re
from collections.abc import Mapping, Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # in this order; ' and : stay
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the evaluator passes a flag of `re` where `re.sub` takes a count
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


# The evaluator's table has each word with one apostrophe missing, and one word the other way round. Capitals never match.
CONTRACTIONS = {key: word for word in _CONTRACTED.split() for key in _without_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"


def strip_punctuation(text: str) -> str:
    """Punctuation deleted where `text` has it beside a space, else made a space; periods that no digit follows deleted.

    A digit, a comma and a digit anywhere make all punctuation be deleted. Of periods, the first 32 are.
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        delete = delete_all or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def normalize_words(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes where they belong, single spaces."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_prediction(answer: str) -> str:
    """An answer as the VQA evaluator compares it."""
    return normalize_words(strip_punctuation(one_line(answer)))


def soft_accuracy(answer: str, annotations: Sequence[Mapping[str, object]]) -> float:
    """Share of annotators with whom an answer agrees, 0 to 1: for each one, a third for each other one who gave it, at most 1.

    Args:
        answer: as the model gave it.
        annotations: of the question, each with `answer`. "Other" are those with any other field: without `answer_id`, equal
            answers count as one annotator's.

    Raises ValueError without annotations.
    """
    if not annotations:
        raise ValueError("a question needs at least one annotated answer")
    given = [str(annotation["answer"]) for annotation in annotations]
    if len(set(given)) > 1:
        given = [strip_punctuation(each) for each in given]
    entries = [{**annotation, "answer": each} for annotation, each in zip(annotations, given, strict=True)]
    prediction = normalize_prediction(answer)
    scores = []
    for entry in entries:
        agreeing = sum(other["answer"] == prediction for other in entries if other != entry)
        scores.append(min(1.0, agreeing / 3))
    return sum(scores) / len(scores)


def evalai(answer: str) -> str:
    """An answer as EvalAI normalises it: the released code's answers to VQAv2, its second score of GQA."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalize_words(strip_punctuation(one_line(text)))


def gqa(answer: str) -> str:
    """An answer as the first score of GQA compares it.

    Words are looked for as parts of others: `sofa bed` becomes `bed`, `this is red` becomes empty.
    """
    text = first_part(answer.strip(), ".,!").lower()
    for word in ("is ", "are ", "a ", "an ", "the "):
        if word in text:
            text = text.split(word)[1]
    return text.split(" of")[0].strip()


def first_part(text: str, marks: str) -> str:
    """What is before the first of each of the marks."""
    for mark in marks:
        text = text.split(mark)[0]
    return text


def one_line(text: str) -> str:
    """Line ends and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()
